"""An action: one attempt of a run to affect or read something, normalised from any protocol. What the critic decides and an approver signs.

The digest is over everything an approver is shown and nothing else: two requests with one digest have the same effect on the same thing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, assert_never

from bailiwick.kernel.canonical import digest
from bailiwick.kernel.ids import RunId


class Verb(StrEnum):
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    EXECUTE = "execute"
    SEND = "send"
    CALL_MODEL = "call-model"

    @property
    def is_effect(self) -> bool:
        """Whether its intent must be durable before it is forwarded. A model call changes nothing but a bill, which the budget reserves."""
        return self not in (Verb.READ, Verb.CALL_MODEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResource:
    """`host` is the verified destination, lower case, without a trailing dot; `path` is as sent, with unreserved escapes undone and without its query.
    `ambiguous` says that two servers may read the path differently (encoded slash, empty segment, backslash): no rule with a path grants it, and every
    rule with a path that denies or holds matches it."""

    scheme: str
    host: str
    port: int
    method: str
    path: str
    query: str = ""
    ambiguous: bool = False

    def __str__(self) -> str:
        default = {"http": 80, "https": 443}.get(self.scheme)
        authority = self.host if self.port == default else f"{self.host}:{self.port}"
        return f"{self.scheme}://{authority}{self.path}{'?' + self.query if self.query else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResource:
    """A model at a provider (`openai`, `anthropic`); `endpoint` is the API spoken (`chat-completions`, `responses`, `messages`)."""

    provider: str
    model: str
    endpoint: str
    host: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What is known of a request's body: its digest and size, once it has been read whole; else neither."""

    sha256: str | None = None
    size: int | None = None
    content_type: str = ""

    @classmethod
    def of(cls, raw: bytes, content_type: str = "") -> "Body":
        return cls(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw), content_type=content_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    run: RunId
    agent: str
    verb: Verb
    resource: HttpResource | ModelResource
    body: Body = field(default_factory=Body)
    arguments: Mapping[str, Any] = field(default_factory=dict)  # JSON of the protocol that an approver must see; empty for plain HTTP
    fields: tuple[Mapping[str, Any], ...] = ()  # header fields, as an approver is shown them; known once the action is held

    def digest(self) -> str:
        """Over verb, resource, arguments, header fields and body, canonical; not over the run, which the approval binds besides."""
        return digest(self.shown())

    def shown(self) -> dict[str, Any]:
        body = {"sha256": self.body.sha256, "size": self.body.size, "content_type": self.body.content_type}
        fields = [dict(each) for each in self.fields]
        return {"verb": self.verb.value, "resource": _shown(self.resource), "arguments": dict(self.arguments), "fields": fields, "body": body}


def _shown(resource: HttpResource | ModelResource) -> dict[str, Any]:
    match resource:
        case HttpResource() as http:
            return {"scheme": http.scheme, "host": http.host, "port": http.port, "method": http.method, "path": http.path, "query": http.query}
        case ModelResource() as model:
            return {"provider": model.provider, "model": model.model, "endpoint": model.endpoint, "host": model.host}
        case never:
            assert_never(never)
