"""A refusal the agent can understand: what was refused, by which rule, whether asking again helps, and that going round is no way.

Plain HTTP gets problem details (RFC 9457). A model endpoint gets its provider's own error shape, so that the official clients raise their permission
error with our words and do not try again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NotRequired, TypedDict, Unpack

from bailiwick.critic.decision import Retry
from bailiwick.gateway.layers.heads import Fields

ADVICE = "do not try to reach the same effect another way"
TYPE_PREFIX = "urn:bailiwick:problem:"
REASON_CHARACTERS_MAX = 1_000
RULES_MAX = 20

TITLES: Final = {
    "denied": "the boundary denies this action",
    "held": "this action waits for a person's sign-off",
    "sign-off-denied": "an approver denied this action",
    "sign-off-expired": "nobody signed this action off in time",
    "sign-off-void": "the sign-off of this action is void",
    "budget": "the run's budget does not cover this action",
    "unclear": "the request can be read in two ways",
    "protocol": "the request breaks its protocol",
    "unsupported": "the gateway does not carry this protocol",
    "too-large": "the request is too large",
    "name": "the host is not known by this name",
    "upstream": "the other side could not be reached or broke its protocol",
    "unavailable": "a part of the gateway is not available, so nothing is allowed",
    "closed": "the run is closed",
}

_RETRY_WORDS: Final[dict[str, str]] = {
    "never": "asking again will not help",
    "after-signoff": "ask again, unchanged, once a person has signed it off",
    "after": "ask again later",
}
_KIND = re.compile(r"[a-z][a-z0-9-]*")

# Types that the providers' own clients know, by status.
_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class Refusal(TypedDict):
    """`kind` is a word of TITLES (another one is its own title); `reason` holds no secret; `hold` is the id to quote to an approver."""

    status: int
    kind: str
    reason: str
    rules: Sequence[str]
    retry: Retry
    run: str
    action: str | None
    hold: NotRequired[str | None]
    retry_after_seconds: NotRequired[int | None]


def render(**refusal: Unpack[Refusal]) -> tuple[int, Fields, bytes]:
    """Status, fields and body of a refusal as problem details (RFC 9457, section 3). `rule`, `reason`, `retry`, `hold`, `run`, `action` and `advice` are
    its extension members; absent ones are not written. The fields have the content's length, and nothing about the connection."""
    return _response(refusal, b"application/problem+json", _problem(refusal))


def for_model(dialect: str, **refusal: Unpack[Refusal]) -> tuple[int, Fields, bytes]:
    """The same in the error shape of `openai` or `anthropic` (another dialect gets problem details), with the problem beside it."""
    message = _message(refusal)
    status = refusal["status"]
    match dialect:
        case "openai":
            kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
            error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": f"bailiwick_{refusal['kind'].replace('-', '_')}"}
            body: dict[str, Any] = {"error": error | {"bailiwick": _problem(refusal)}}
        case "anthropic":
            kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
            body = {"type": "error", "error": {"type": kind, "message": message, "bailiwick": _problem(refusal)}, "request_id": refusal["action"]}
        case _:
            return render(**refusal)
    return _response(refusal, b"application/json", body)


def _problem(refusal: Refusal) -> dict[str, Any]:
    kind = refusal["kind"] if _KIND.fullmatch(refusal["kind"]) else "denied"
    rules = [rule[:200] for rule in refusal["rules"][:RULES_MAX]]
    members = {
        "type": TYPE_PREFIX + kind,
        "title": TITLES.get(kind, kind.replace("-", " ")),
        "status": refusal["status"],
        "detail": _message(refusal),
        "reason": _bounded(refusal["reason"]),
        "rule": rules[0] if rules else None,
        "rules": rules if len(rules) > 1 else None,
        "retry": refusal["retry"],
        "retry_after_seconds": refusal.get("retry_after_seconds"),
        "hold": refusal.get("hold"),
        "run": refusal["run"],
        "action": refusal["action"],
        "advice": ADVICE,
    }
    return {name: value for name, value in members.items() if value is not None}


def _message(refusal: Refusal) -> str:
    """One paragraph for a model or a person who sees nothing but the exception's text."""
    rules = f" (rule {', '.join(refusal['rules'][:3])})" if refusal["rules"] else ""
    hold = refusal.get("hold")
    waiting = f" (hold {hold})" if hold else ""
    seconds = refusal.get("retry_after_seconds")
    later = f", in {seconds} s" if refusal["retry"] == "after" and seconds is not None else ""
    return f"refused by bailiwick: {_bounded(refusal['reason'])}{rules}; {_RETRY_WORDS[refusal['retry']]}{later}{waiting}; {ADVICE}"


def _response(refusal: Refusal, content_type: bytes, members: Mapping[str, Any]) -> tuple[int, Fields, bytes]:
    body = json.dumps(members, separators=(",", ":")).encode()  # ASCII: lone surrogates and controls come out escaped
    fields = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    seconds = refusal.get("retry_after_seconds")
    again = refusal["retry"] == "after"
    if again and seconds is not None:
        fields.append((b"retry-after", str(max(0, seconds)).encode()))  # RFC 9110, section 10.2.3
    if not again:
        fields.append((b"x-should-retry", b"false"))  # both official clients obey it before they look at the status
    return refusal["status"], tuple(fields), body


def _bounded(reason: str) -> str:
    return reason if len(reason) <= REASON_CHARACTERS_MAX else f"{reason[: REASON_CHARACTERS_MAX - 3]}..."
