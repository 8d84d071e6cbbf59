"""A model server that follows a script: OpenAI Chat Completions and Responses, Anthropic Messages, streaming and not, and faults by model name.

It wants the key it was made with and notes what arrived, so that a test can say: the key came, the agent's placeholder did not.
"""

import hashlib
import hmac
import json
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bailiwick.cli.demo.dialects import Asked, ChatCompletions, Dialect, Messages, Unintelligible
from bailiwick.cli.demo.responses import Responses
from bailiwick.cli.demo.scripts import Answer, Conversation, Script, Turn, in_order, say
from bailiwick.cli.demo.web import Cut, Request, Response, Server

SEEN_MAX = 10_000
REMEMBERED_MAX = 1_000  # responses that previous_response_id may name
ENDLESS_PIECE = b": " + b"x" * 65_533 + b"\n\n"  # a comment, to a reader of server-sent events

_DIALECTS: Mapping[str, Dialect] = {
    "/v1/chat/completions": ChatCompletions(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
}

# What a model of this name does instead of, or in the middle of, answering; tested one by one.
FAULTS: Mapping[str, str] = {
    "scripted-half-chunk": "sends the head and half a chunk, then closes",
    "scripted-hang": "never answers",
    "scripted-hang-midway": "sends the first event, then nothing more",
    "scripted-reset": "resets the connection instead of answering",
    "scripted-reset-midway": "sends the first event, then resets",
    "scripted-garbage": "answers with bytes that are not HTTP",
    "scripted-endless": "sends for ever",
    "scripted-429": "answers 429 with retry-after",
    "scripted-500": "answers 500",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived. `credential` is `right`, `wrong` or `none`; the value presented stands here as its SHA-256 only."""

    number: int
    method: str
    path: str
    model: str
    stream: bool
    credential: str
    credential_sha256: str
    body_sha256: str
    fields: tuple[str, ...]


class ModelServer:
    """A context manager. `scripts` are by model name; other models follow `default`."""

    def __init__(
        self,
        *,
        key: str,
        scripts: Mapping[str, Script] | None = None,
        default: Script | None = None,
        tls: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._key = key
        self._scripts = dict(scripts or {})
        self._default = default or in_order(say("Hello from a scripted model."))
        self._seen: list[Seen] = []
        self._requests: list[Request] = []
        self._known: OrderedDict[str, Conversation] = OrderedDict()
        self._lock = threading.Lock()  # keeps `_seen`, `_requests`, `_known`
        self.server = Server(self._answer, tls=tls, address=address)

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def seen(self) -> tuple[Seen, ...]:
        with self._lock:
            return tuple(self._seen)

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests whole, credentials and all: for a test in the same process only."""
        with self._lock:
            return tuple(self._requests)

    def follow(self, model: str, script: Script) -> None:
        """From here on, `model` answers by `script`."""
        self._scripts[model] = script

    def journal(self) -> list[dict[str, Any]]:
        return [asdict(seen) for seen in self.seen]

    def __enter__(self) -> "ModelServer":
        self.server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.server.__exit__(*details)

    def _answer(self, request: Request) -> Response:
        dialect = _DIALECTS.get(request.path)
        try:
            document = json.loads(request.body) if request.body else None
        except ValueError:
            document = None
        right = self._note(request, document)
        shape: Dialect = dialect or _DIALECTS["/v1/chat/completions"]
        if not right:
            return Response.json(401, shape.refusal(401, "incorrect API key provided"), www_authenticate="Bearer")
        if request.path == "/v1/models" or request.path.startswith("/v1/models/"):
            return self._models(request)
        if dialect is None:
            return Response.json(404, shape.refusal(404, f"no such endpoint: {request.method} {request.path}"))
        if request.method != "POST":
            return Response.json(405, shape.refusal(405, f"{request.method} is not allowed here; use POST"), allow="POST")
        if document is None:
            return Response.json(400, shape.refusal(400, "the body is not JSON"))
        try:
            asked = dialect.read(document, self._known)
        except Unintelligible as error:
            return Response.json(400, shape.refusal(400, str(error)))
        return self._speak(dialect, asked)

    def _speak(self, dialect: Dialect, asked: Asked) -> Response:
        model = asked.conversation.model
        if model in FAULTS:
            return self._misbehave(dialect, asked)
        answer = self._scripts.get(model, self._default)(asked.conversation)
        self._remember(asked, answer)
        if asked.stream:
            return _stream(dialect.events(asked, answer))
        return Response.json(200, dialect.body(asked, answer), x_request_id=f"req_{asked.identity}")

    def _misbehave(self, dialect: Dialect, asked: Asked) -> Response:
        events = dialect.events(asked, say("This answer will not arrive whole."))
        match asked.conversation.model.removeprefix("scripted-"):
            case "half-chunk":
                return _stream(_first_then(events, lambda: self._cut(b"40\r\ndata: {")))
            case "hang":
                self.server.stopping.wait()
                raise Cut
            case "hang-midway":
                return _stream(_first_then(events, self._hang))
            case "reset":
                raise Cut(reset=True)
            case "reset-midway":
                return _stream(_first_then(events, lambda: self._cut(reset=True)))
            case "garbage":
                raise Cut(last=b"\x00\xff this is not HTTP\r\n\r\n")
            case "endless":
                return _stream(_endless())
            case "429":
                return Response.json(429, dialect.refusal(429, "rate limit reached"), retry_after="1")
            case _:
                return Response.json(500, dialect.refusal(500, "the server had an error"))

    def _hang(self) -> None:
        self.server.stopping.wait()
        raise Cut

    @staticmethod
    def _cut(last: bytes = b"", *, reset: bool = False) -> None:
        raise Cut(last=last, reset=reset)

    def _models(self, request: Request) -> Response:
        names = sorted({*self._scripts, "scripted"})
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "scripted"} for name in names]
        if request.path == "/v1/models":
            return Response.json(200, {"object": "list", "data": models})
        wanted = request.path.removeprefix("/v1/models/")
        found = next((model for model in models if model["id"] == wanted), None)
        if found is None:
            return Response.json(404, _DIALECTS["/v1/responses"].refusal(404, f"model {wanted!r} does not exist"))
        return Response.json(200, found)

    def _note(self, request: Request, document: Any) -> bool:
        """Whether the key is the right one; the request is in the journal either way."""
        presented = request.bearer() or request.fields.get("x-api-key")
        right = presented is not None and hmac.compare_digest(presented.encode(), self._key.encode())
        named = document if isinstance(document, dict) else {}
        with self._lock:
            if len(self._seen) < SEEN_MAX:
                self._requests.append(request)
                self._seen.append(
                    Seen(
                        number=len(self._seen),
                        method=request.method,
                        path=request.path,
                        model=str(named.get("model", "")),
                        stream=bool(named.get("stream")),
                        credential="none" if presented is None else "right" if right else "wrong",
                        credential_sha256=hashlib.sha256((presented or "").encode()).hexdigest(),
                        body_sha256=hashlib.sha256(request.body).hexdigest(),
                        fields=tuple(request.fields),
                    )
                )
        return right

    def _remember(self, asked: Asked, answer: Answer) -> None:
        said = Turn("assistant", answer.text, len(answer.calls))
        kept = Conversation(asked.conversation.model, (*asked.conversation.turns, said), asked.conversation.tools)
        with self._lock:
            self._known[f"resp_{asked.identity}"] = kept
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)


def _stream(events: Iterator[bytes]) -> Response:
    return Response(200, events, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})


def _first_then(events: Iterator[bytes], act: Callable[[], None]) -> Iterator[bytes]:
    yield next(events)
    act()


def _endless() -> Iterator[bytes]:
    while True:
        yield ENDLESS_PIECE
