"""Model calls as their requests say them: which endpoint, which model, how many tokens at most, which tools are offered.

The budget reserves a ceiling before the call is forwarded, so what cannot be bounded is refused. A body that two parsers could read differently (a key
twice) is refused too: the model that is decided must be the model that answers.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

from bailiwick.kernel.errors import CallerError

CHAT_COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES = "chat-completions", "responses", "embeddings", "messages"

# With and without the version: the official OpenAI client is given a base URL that ends in /v1, people forget it.
_ENDPOINTS: Final[dict[str, dict[str, str]]] = {
    "openai": {
        "/v1/chat/completions": CHAT_COMPLETIONS,
        "/chat/completions": CHAT_COMPLETIONS,
        "/v1/responses": RESPONSES,
        "/responses": RESPONSES,
        "/v1/embeddings": EMBEDDINGS,
        "/embeddings": EMBEDDINGS,
    },
    "anthropic": {"/v1/messages": MESSAGES, "/messages": MESSAGES},
}

MODEL_CHARACTERS_MAX = 200
TOKENS_MAX = 10_000_000  # more than any context window; a larger number is a mistake or an attack on sums
OUTPUT_TOKENS_DEFAULT = 128_000  # the largest output of current models: what a call may cost that names no maximum
CHOICES_MAX = 128  # OpenAI's bound on `n`
MARKS_MAX = 1_000_000  # of JSON's own, a tenth of them in the largest honest prompts: sixteen megabytes of `{}` would stop this core for seconds
TOOLS_SHOWN_MAX = 256
# Tokens of a part that its bytes in the body do not bound. Pictures: the largest grids of current models, with room. Documents and recordings: 100 pages at
# the 3,000 tokens a page that Anthropic's PDF guide gives as the most.
IMAGE_TOKENS_MAX = 20_000
DOCUMENT_TOKENS_MAX = 300_000
_IMAGES = frozenset({"image", "image_url", "input_image", "computer_screenshot"})
_DOCUMENTS = frozenset({"document", "file", "input_file", "input_audio", "audio", "video", "container_upload"})
_OWN_OVERHEAD_TOKENS = 1_000  # what providers put before a prompt (tool instructions) and around messages
_BASE64 = re.compile(r"(?:data:[a-z]+/[a-z0-9.+-]+;base64,)?[A-Za-z0-9+/_=-]*")
_SLASHES = re.compile("//+")
_MODEL = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """`input_tokens_ceiling` bounds what the provider can count for this body (a token is at least a byte of it); `output_tokens_ceiling` is what was
    asked for at most, for all choices together, or, with `output_stated` false, what models write at most. `stored_context` says that the provider adds
    what it stores (an earlier response, a conversation, a prompt), which no body bounds; nor does one bound what the provider's own tools read.
    `service_tier` is a wish that changes the price. `arguments` is what an approver sees: JSON without floats."""

    model: str
    stream: bool
    input_tokens_ceiling: int
    output_tokens_ceiling: int
    output_stated: bool = True
    stored_context: bool = False
    service_tier: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def endpoint_of(dialect: str, method: str, path: str) -> str | None:
    """The endpoint of a model call; None for everything else at a provider (listing models, counting tokens, files), which is plain HTTP. `path` is in
    its normal form (actions.normalise_path); a slash too many, which some servers forgive, does not make another endpoint of it."""
    if method != "POST":
        return None
    return _ENDPOINTS.get(dialect, {}).get(_SLASHES.sub("/", path).rstrip("/"))


def read_call(endpoint: str, body: bytes) -> ModelCall:
    """The call that a request's body makes; CallerError, naming the field, for one that is not a call of this endpoint."""
    call = _parse(body)
    model = call.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_CHARACTERS_MAX or not _MODEL.fullmatch(model):
        _refuse("model", model, f"the name of a model, at most {MODEL_CHARACTERS_MAX} visible characters")
    match endpoint:
        case "chat-completions":
            limit, shown = _chat(call)
        case "responses":
            limit, shown = _responses(call)
        case "messages":
            limit, shown = _messages(call)
        case "embeddings":
            limit, shown = 0, {"inputs": _count(call, "input", (str, list))}
        case _:
            raise CallerError(f"endpoint {endpoint!r} is unknown; must be {CHAT_COMPLETIONS}, {RESPONSES}, {MESSAGES} or {EMBEDDINGS}")
    images, documents, inline = _media(call)
    unbounded = images * IMAGE_TOKENS_MAX + documents * DOCUMENT_TOKENS_MAX
    tier = "fast" if call.get("speed") == "fast" else _word(call, "service_tier")
    shown = shown | {"service_tier": tier, "images": images or None, "documents": documents or None}
    return ModelCall(
        model=model,
        stream=_flag(call, "stream"),
        input_tokens_ceiling=min(len(body) - inline + unbounded + _OWN_OVERHEAD_TOKENS, TOKENS_MAX),
        output_tokens_ceiling=limit,
        output_stated=limit == 0 or shown.get("max_output_tokens") is not None,
        stored_context=bool(shown.get("stored_context")),
        service_tier=tier,
        arguments={name: value for name, value in shown.items() if value not in (None, [], ())},
    )


def _chat(call: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    messages = _count(call, "messages", (list,))
    if not messages:
        _refuse("messages", [], "at least one message")
    choices = _integer(call, "n", 1, CHOICES_MAX) or 1
    asked = [number for name in ("max_completion_tokens", "max_tokens") if (number := _integer(call, name, 1, TOKENS_MAX)) is not None]
    shown = {
        "messages": messages,
        "choices": choices if choices != 1 else None,
        "max_output_tokens": max(asked) if asked else None,
        "tools": _tools(call, "tools", "openai") + _tools(call, "functions", "function"),
        "reasoning_effort": _word(call, "reasoning_effort"),
    }
    return min((max(asked) if asked else OUTPUT_TOKENS_DEFAULT) * choices, TOKENS_MAX), shown


def _responses(call: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    asked = _integer(call, "max_output_tokens", 1, TOKENS_MAX)
    reasoning = _object(call, "reasoning")
    shown = {
        "messages": _count(call, "input", (str, list)) if "input" in call else 0,
        "max_output_tokens": asked,
        "tools": _tools(call, "tools", "openai"),
        "reasoning_effort": _word(reasoning, "effort"),
        "stored_context": True if any(call.get(name) for name in ("previous_response_id", "conversation", "prompt")) else None,
        "background": True if _flag(call, "background") else None,
    }
    return OUTPUT_TOKENS_DEFAULT if asked is None else asked, shown


def _messages(call: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    messages = _count(call, "messages", (list,))
    if not messages:
        _refuse("messages", [], "at least one message")
    asked = _integer(call, "max_tokens", 1, TOKENS_MAX)
    if asked is None:
        _refuse("max_tokens", None, "an integer; this API asks for one")
    shown = {
        "messages": messages,
        "max_output_tokens": asked,
        "tools": _tools(call, "tools", "anthropic"),
        "thinking_tokens": _integer(_object(call, "thinking"), "budget_tokens", 0, TOKENS_MAX),
        "reasoning_effort": _word(_object(call, "output_config"), "effort"),
        "mcp_servers": _count(call, "mcp_servers", (list,)) if "mcp_servers" in call else None,
    }
    return asked, shown


def _tools(call: dict[str, Any], name: str, shape: Literal["openai", "anthropic", "function"]) -> list[str]:
    """Names of the tools offered; a provider's own tool (`web_search`, `mcp`) by its type, with the server that it will call."""
    tools = call.get(name)
    if tools is None:
        return []
    if not isinstance(tools, list):
        _refuse(name, tools, "a list of tools")
    shown = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            _refuse(f"{name}[{index}]", tool, "an object")
        nested = tool.get("function")
        function: dict[str, Any] = nested if shape == "openai" and isinstance(nested, dict) else tool
        kind = tool.get("type")
        label = function.get("name") or tool.get("server_label") or kind
        if not isinstance(label, str):
            _refuse(f"{name}[{index}].name", label, "text")
        own = isinstance(kind, str) and kind not in ("function", "custom") and kind != label
        shown.append(_plain(f"{kind}:{label}" if own else label))
    return [*shown[:TOOLS_SHOWN_MAX], *([f"(and {len(shown) - TOOLS_SHOWN_MAX} more)"] if len(shown) > TOOLS_SHOWN_MAX else [])]


def _media(call: dict[str, Any]) -> tuple[int, int, int]:
    """Pictures, documents, and the bytes of pictures that stand in the body (their tokens are bounded by the picture, not by those)."""
    images = documents = inline = 0
    stack: list[Any] = [call.get("messages"), call.get("input"), call.get("system")]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            kind = item.get("type")
            if not isinstance(kind, str):
                stack.extend(item.values())
            elif kind in _IMAGES:
                images += 1
                inline += sum(map(len, _encoded(item)))
            elif kind in _DOCUMENTS and not (kind == "document" and _is_plain(item.get("source"))):
                documents += 1
            else:
                stack.extend(item.values())
    return images, documents, inline


def _is_plain(source: Any) -> bool:
    """Text that stands in the body is bounded by it."""
    return isinstance(source, dict) and source.get("type") in ("text", "content")


def _encoded(part: dict[str, Any]) -> list[str]:
    """The base64 of a picture, in the fields where the providers expect it."""
    nested = [value for value in part.values() if isinstance(value, dict)]
    texts = [holder.get(name) for holder in (part, *nested) for name in ("url", "image_url", "data")]
    return [text for text in texts if isinstance(text, str) and _BASE64.fullmatch(text)]


def _parse(body: bytes) -> dict[str, Any]:
    if len(body) > MARKS_MAX and (marks := sum(map(body.count, (b"{", b"[", b":", b",")))) > MARKS_MAX:
        raise CallerError(f"the body of a model call has {marks} brackets, colons and commas; must be at most {MARKS_MAX}, so that it can be read in time")
    try:
        call = json.loads(body.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise CallerError(f"the body of a model call must be UTF-8; byte {error.start} is not") from error
    except RecursionError as error:
        raise CallerError("the body of a model call is nested too deeply to be read") from error
    except ValueError as error:
        raise CallerError(f"the body of a model call must be JSON: {error}") from error
    if not isinstance(call, dict):
        raise CallerError(f"the body of a model call is a {type(call).__name__}; must be a JSON object")
    return call


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """RFC 8259, section 4: what a name given twice means depends on who reads it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise CallerError(f"the body names {_short(twice)} twice; two readers would take different ones")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259, section 6)")


def _flag(call: dict[str, Any], name: str) -> bool:
    value = call.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(name, value, "true or false")
    return value is True


def _integer(call: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = call.get(name)
    if value is None:
        return None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # 100.0 is the JSON number 100
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        _refuse(name, value, f"an integer from {least} to {most}")
    return value


def _word(call: dict[str, Any], name: str) -> str | None:
    value = call.get(name)
    if value is not None and not isinstance(value, str):
        _refuse(name, value, "text")
    return _plain(value) if value else None


def _object(call: dict[str, Any], name: str) -> dict[str, Any]:
    value = call.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(name, value, "an object")
    return value


def _count(call: dict[str, Any], name: str, kinds: tuple[type, ...]) -> int:
    value = call.get(name)
    if not isinstance(value, kinds):
        _refuse(name, value, " or ".join({"str": "text", "list": "a list"}[kind.__name__] for kind in kinds))
    return len(value) if isinstance(value, list) else 1


def _plain(value: str) -> str:
    """Text that a record and an approver can be shown: bounded, valid Unicode."""
    return value[:MODEL_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode()


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise CallerError(f"{name} is {_short(value)}; must be {expected}")


def _short(value: object) -> str:
    shown = json.dumps(value, default=str) if not isinstance(value, dict | list) else f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
