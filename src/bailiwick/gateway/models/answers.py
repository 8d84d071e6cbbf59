"""The answers of model endpoints, read: each reader knows the events and the whole body of one endpoint.

A provider's answer is hostile input like any other: every member may be missing or of another type, and every number is bounded.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from bailiwick.gateway.models.calls import CHAT_COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, TOKENS_MAX
from bailiwick.kernel import limits

TOOL_CALLS_MAX = 128  # of one answer
ARGUMENTS_KEPT_MAX = 256 * limits.KIB  # of one call: what is put in a normal form before it is hashed
ARGUMENTS_SHOWN_MAX = 4 * limits.KIB
BYTES_PER_TOKEN = 3  # English has about four; fewer means an estimate that is rather too high


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool the model asks for. The digest is over the whole arguments, in a normal form where they are JSON, so that equal calls are equal; the text is
    their beginning, at most ARGUMENTS_SHOWN_MAX characters."""

    name: str
    id: str
    arguments_sha256: str
    arguments: str

    def shown(self) -> dict[str, str]:
        return {"name": self.name, "id": self.id, "arguments_sha256": self.arguments_sha256, "arguments": self.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """`input_tokens` holds the cached ones and those written to the cache; `cache_write_tokens` holds those written for an hour. A number that nobody told
    is None, but for `output_tokens`, which is then estimated from what was written, with `estimated` set. `complete` is whether the answer ended as its
    endpoint ends one."""

    model: str | None = None
    input_tokens: int | None = None
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_hour_tokens: int = 0
    output_tokens: int | None = None
    reasoning_tokens: int = 0
    stop_reason: str | None = None
    service_tier: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    estimated: bool = False
    complete: bool = False
    problem: str | None = None


class _Call:
    """A tool call that is being written."""

    def __init__(self, name: str = "", identity: str = "") -> None:
        self.name, self.id = name, identity
        self._parts: list[str] = []
        self._kept = 0
        self._hash = hashlib.sha256()

    def write(self, part: str) -> None:
        self._hash.update(part.encode("utf-8", "surrogatepass"))
        if self._kept <= ARGUMENTS_KEPT_MAX:
            self._parts.append(part)
            self._kept += len(part)

    def ended(self) -> ToolCall:
        text = "".join(self._parts)
        digest = self._hash.hexdigest()
        if self._kept <= ARGUMENTS_KEPT_MAX:
            with contextlib.suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):  # not JSON: the digest is over the text as it is
                digest = hashlib.sha256(msgspec.json.encode(msgspec.json.decode(text or "{}"), order="sorted")).hexdigest()
        return ToolCall(name=_clean(self.name, 200), id=_clean(self.id, 200), arguments_sha256=digest, arguments=_clean(text, ARGUMENTS_SHOWN_MAX))


class AnswerReader:
    """What the endpoints have in common. A subclass reads `event` or `whole` and sets `done` when it saw the end."""

    def __init__(self) -> None:
        self.done = False
        self.problem: str | None = None
        self.model: str | None = None
        self.stop: str | None = None
        self.tier: str | None = None
        self.numbers: dict[str, int] = {}
        self.written = 0  # bytes of output seen
        self.calls: dict[Any, _Call] = {}

    def event(self, value: dict[str, Any]) -> None:
        """One event of a stream."""
        raise NotImplementedError

    def whole(self, value: dict[str, Any]) -> None:
        """The body of an answer that is no stream."""
        raise NotImplementedError

    def parse(self, body: bytes) -> Any:
        """The body as values; msgspec.DecodeError, RecursionError."""
        return msgspec.json.decode(body)

    def usage(self, *, complete: bool, problem: str | None) -> ModelUsage:
        told = self.numbers.get("output")
        seen = -(-self.written // BYTES_PER_TOKEN)
        estimated = told is None or not self.done  # what a provider told before the end is what there was so far
        return ModelUsage(
            model=self.model,
            input_tokens=self.numbers.get("input"),
            cached_input_tokens=self.numbers.get("cached", 0),
            cache_write_tokens=self.numbers.get("cache_write", 0),
            cache_write_hour_tokens=self.numbers.get("cache_write_hour", 0),
            output_tokens=max(seen, told or 0) if estimated else told,
            reasoning_tokens=self.numbers.get("reasoning", 0),
            stop_reason=self.stop,
            service_tier=self.tier,
            tool_calls=tuple(call.ended() for call in self.calls.values()),
            estimated=estimated,
            complete=complete,
            problem=problem,
        )

    def call(self, key: Any) -> _Call:
        """The call of that key; one beyond the bound is read and not kept."""
        found = self.calls.get(key)
        if found is None:
            found = _Call()
            if len(self.calls) < TOOL_CALLS_MAX:
                self.calls[key] = found
            else:
                self.problem = self.problem or f"more than {TOOL_CALLS_MAX} tool calls in one answer"
        return found

    def note(self, name: str, value: Any) -> None:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX:
            self.numbers[name] = value

    def wrote(self, value: Any) -> None:
        if isinstance(value, str):
            self.written += len(value.encode("utf-8", "replace"))

    def failed(self, error: Any) -> None:
        details = _object(error)
        kind = _text(details.get("type")) or _text(details.get("code")) or "error"
        self.problem = self.problem or _clean(f"the provider reports {kind}: {_text(details.get('message')) or 'no message'}", 500)

    def header(self, value: dict[str, Any]) -> None:
        self.model = _text(value.get("model")) or self.model
        self.tier = _text(value.get("service_tier")) or self.tier


class _Chat(AnswerReader):
    """OpenAI's chat completions: chunks until `[DONE]`, usage in the last one if `stream_options.include_usage` asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self._open: set[int] = set()
        self._stopped: set[int] = set()

    def event(self, value: dict[str, Any]) -> None:
        if "error" in value:
            self.failed(value["error"])
        self.header(value)
        for choice in _objects(value.get("choices")):
            self._choice(choice, _object(choice.get("delta")))
        self._usage(value.get("usage"))
        if self._stopped and self._open <= self._stopped:
            self.done = True  # compatible servers exist that leave [DONE] out

    def whole(self, value: dict[str, Any]) -> None:
        if "error" in value:
            self.failed(value["error"])
        self.header(value)
        choices = _objects(value.get("choices"))
        for choice in choices:
            self._choice(choice, _object(choice.get("message")))
        self._usage(value.get("usage"))
        self.done = bool(choices)

    def _choice(self, choice: dict[str, Any], message: dict[str, Any]) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        self._open.add(index)
        for name in ("content", "refusal", "reasoning_content", "reasoning"):
            self.wrote(message.get(name))
        for position, tool in enumerate(_objects(message.get("tool_calls"))):
            place = tool.get("index")
            self._tool((index, place if isinstance(place, int) else position), tool, _object(tool.get("function")) or _object(tool.get("custom")))
        if message.get("function_call"):
            self._tool((index, "function_call"), {}, _object(message.get("function_call")))
        if (stop := _text(choice.get("finish_reason"))) is not None:
            self.stop = stop
            self._stopped.add(index)

    def _tool(self, key: tuple[int, int | str], tool: dict[str, Any], function: dict[str, Any]) -> None:
        call = self.call(key)
        call.id = _text(tool.get("id")) or call.id
        call.name = call.name or _text(function.get("name")) or ""
        for name in ("arguments", "input"):
            if isinstance(part := function.get(name), str):
                call.write(part)
                self.wrote(part)

    def _usage(self, usage: Any) -> None:
        numbers = _object(usage)
        self.note("input", numbers.get("prompt_tokens"))
        self.note("output", numbers.get("completion_tokens"))
        prompt = _object(numbers.get("prompt_tokens_details"))
        self.note("cached", prompt.get("cached_tokens"))
        self.note("cache_write", prompt.get("cache_write_tokens"))
        self.note("reasoning", _object(numbers.get("completion_tokens_details")).get("reasoning_tokens"))


class _Responses(AnswerReader):
    """OpenAI's responses: typed events; the one that ends the stream holds the whole response."""

    def event(self, value: dict[str, Any]) -> None:
        match value.get("type"):
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                self.whole(_object(value.get("response")))
                self.done = True
            case "response.created" | "response.in_progress" | "response.queued":
                self.header(_object(value.get("response")))
            case "response.output_item.done":
                self._item(_object(value.get("item")), value.get("output_index"))
            case "error":
                self.failed(_object(value.get("error")) or value)
            case str() as kind if kind.endswith(".delta"):
                self.wrote(value.get("delta"))
            case _:
                return

    def whole(self, value: dict[str, Any]) -> None:
        self.header(value)
        if value.get("error"):
            self.failed(value["error"])
        items = _objects(value.get("output"))
        if items:
            self.calls.clear()  # the whole response says them all again
        for index, item in enumerate(items):
            self._item(item, index)
        status = _text(value.get("status"))
        self.stop = _text(_object(value.get("incomplete_details")).get("reason")) or status
        usage = _object(value.get("usage"))
        self.note("input", usage.get("input_tokens"))
        self.note("output", usage.get("output_tokens"))
        details = _object(usage.get("input_tokens_details"))
        self.note("cached", details.get("cached_tokens"))
        self.note("cache_write", details.get("cache_write_tokens"))
        self.note("reasoning", _object(usage.get("output_tokens_details")).get("reasoning_tokens"))
        self.done = status in ("completed", "incomplete", "failed", "cancelled", "queued", "in_progress")

    def _item(self, item: dict[str, Any], index: Any) -> None:
        kind = _text(item.get("type")) or ""
        if not kind.endswith("_call"):
            return
        call = self.call(index if isinstance(index, int) else len(self.calls))
        if call.id:
            return
        call.name = _text(item.get("name")) or kind.removesuffix("_call")
        call.id = _text(item.get("call_id")) or _text(item.get("id")) or "-"
        for name in ("arguments", "input", "action"):
            if (part := item.get(name)) is not None:
                call.write(part if isinstance(part, str) else _encoded(part))


class _Messages(AnswerReader):
    """Anthropic's messages: the start tells the input, blocks follow, `message_delta` tells stop reason and output so far, `message_stop` ends."""

    def event(self, value: dict[str, Any]) -> None:
        place = value.get("index")
        index = place if isinstance(place, int) else -1
        match value.get("type"):
            case "message_start":
                message = _object(value.get("message"))
                self.header(message)
                self._usage(message.get("usage"))
            case "content_block_start":
                self._block(_object(value.get("content_block")), index)
            case "content_block_delta":
                delta = _object(value.get("delta"))
                for name in ("text", "thinking", "partial_json"):
                    self.wrote(delta.get(name))
                if index in self.calls and isinstance(part := delta.get("partial_json"), str):
                    self.calls[index].write(part)
            case "message_delta":
                self.stop = _text(_object(value.get("delta")).get("stop_reason")) or self.stop
                self._usage(value.get("usage"))
            case "message_stop":
                self.done = True
            case "error":
                self.failed(value.get("error"))
            case _:
                return

    def whole(self, value: dict[str, Any]) -> None:
        if value.get("type") == "error":
            self.failed(value.get("error"))
            return
        self.header(value)
        for index, block in enumerate(_objects(value.get("content"))):
            self._block(block, index)
            if index in self.calls and block.get("input") is not None:
                self.calls[index].write(_encoded(block["input"]))
        self.stop = _text(value.get("stop_reason"))
        self._usage(value.get("usage"))
        self.done = value.get("type") == "message"

    def _block(self, block: dict[str, Any], index: int) -> None:
        """A tool of the client's (`tool_use`), the provider's (`server_tool_use`) or an MCP server's (`mcp_tool_use`)."""
        kind = _text(block.get("type")) or ""
        if kind.endswith("tool_use"):
            call = self.call(index)
            call.name = _text(block.get("name")) or kind
            call.id = _text(block.get("id")) or ""
        self.wrote(block.get("text"))

    def _usage(self, usage: Any) -> None:
        """`input_tokens` there does not hold what was read from or written to the cache; ours does."""
        numbers = _object(usage)
        self.note("fresh", numbers.get("input_tokens"))
        self.note("cached", numbers.get("cache_read_input_tokens"))
        self.note("cache_write", numbers.get("cache_creation_input_tokens"))
        self.note("cache_write_hour", _object(numbers.get("cache_creation")).get("ephemeral_1h_input_tokens"))
        self.note("output", numbers.get("output_tokens"))  # so far: the last one counts
        self.note("reasoning", _object(numbers.get("output_tokens_details")).get("thinking_tokens"))
        self.tier = _text(numbers.get("service_tier")) or self.tier
        if numbers.get("speed") == "fast":
            self.tier = "fast"
        if "fresh" in self.numbers:
            self.numbers["input"] = sum(self.numbers.get(name, 0) for name in ("fresh", "cached", "cache_write"))


class _EmbeddingsShape(msgspec.Struct):
    """What is looked at, so that megabytes of vectors are passed over and not made into numbers."""

    model: Any = None
    usage: Any = None
    error: Any = None
    data: msgspec.Raw = msgspec.Raw(b"")


class _Embeddings(AnswerReader):
    def parse(self, body: bytes) -> Any:
        shape = msgspec.json.decode(body, type=_EmbeddingsShape)
        listed: list[Any] | None = [] if bytes(shape.data).startswith(b"[") else None
        return {"model": shape.model, "usage": shape.usage, "data": listed} | ({"error": shape.error} if shape.error else {})

    def event(self, value: dict[str, Any]) -> None:
        self.whole(value)

    def whole(self, value: dict[str, Any]) -> None:
        if "error" in value:
            self.failed(value["error"])
        self.header(value)
        self.note("input", _object(value.get("usage")).get("prompt_tokens"))
        self.note("output", 0)
        self.done = isinstance(value.get("data"), list)


READERS: Final[dict[str, type[AnswerReader]]] = {
    CHAT_COMPLETIONS: _Chat,
    RESPONSES: _Responses,
    MESSAGES: _Messages,
    EMBEDDINGS: _Embeddings,
}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return _clean(value, 200) if isinstance(value, str) and value else None


def _clean(value: str, characters: int) -> str:
    """Bounded, and valid Unicode: fit for the record."""
    return value[:characters].encode("utf-8", "backslashreplace").decode()


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()
