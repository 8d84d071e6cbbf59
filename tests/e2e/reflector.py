"""A service that gives back what it was authorised with, in every way a server does by mistake or by trouble; and who looks for it afterwards."""

import base64
import gzip
import html
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Cut, Request, Response, Server

Reflection = Callable[[str], Response]


def _split(text: str) -> Iterator[bytes]:
    """Chunk by chunk, a break inside the secret at every place."""
    raw = text.encode()
    for size in range(1, 8):
        for at in range(0, len(raw), size):
            yield raw[at : at + size]
        yield b"\n"


def _broken_off(text: str) -> Iterator[bytes]:
    yield b"begin " + text.encode()
    raise Cut(reset=True)


def _base64(text: str) -> str:
    return " ".join(base64.b64encode(b"-" * offset + text.encode()).decode() for offset in range(3))


REFLECTIONS: dict[str, Reflection] = {
    "raw": lambda text: Response(200, text.encode()),
    "field": lambda text: Response(200, b"see the head", {"X-Echo": text, "Set-Cookie": f"session={text.split()[-1]}; Path=/"}),
    "reason": lambda text: Response(401, b"", {"WWW-Authenticate": f'Bearer error="invalid_token", error_description="{text}"'}),
    "redirect": lambda text: Response(302, b"", {"Location": f"https://elsewhere.example/?token={urllib.parse.quote(text, safe='')}"}),
    "json": lambda text: Response.json(200, {"authorization": text, "nested": [{"value": text}]}),
    "json-escaped": lambda text: Response(200, json.dumps({"authorization": text}).replace("/", "\\/").encode(), {"content-type": "application/json"}),
    "base64": lambda text: Response(200, _base64(text).encode()),
    "base64-url": lambda text: Response(200, base64.urlsafe_b64encode(text.encode())),
    "hex": lambda text: Response(200, (text.encode().hex() + " " + text.encode().hex().upper()).encode()),
    "query": lambda text: Response(200, urllib.parse.urlencode({"a": text}).encode()),
    "percent": lambda text: Response(200, "".join(f"%{byte:02x}" for byte in text.encode()).encode()),
    "html": lambda text: Response(200, f"<p>{html.escape(text)}</p>".encode(), {"content-type": "text/html"}),
    "split": lambda text: Response(200, _split(text)),
    "broken-off": lambda text: Response(200, _broken_off(text)),
    "error": lambda text: Response.json(500, {"title": "boom", "detail": f"cannot parse {text!r}", "trace": [text] * 3}),
    "compressed": lambda text: Response(200, gzip.compress(text.encode()), {"content-encoding": "gzip"}),
    "events": lambda text: Response(200, iter([b"data: ", text.encode(), b"\n\n"]), {"content-type": "text/event-stream"}),
}


class Reflector:
    """A context manager. `received` is each value it was authorised with."""

    def __init__(self, authority: Authority, name: str) -> None:
        self.received: set[str] = set()
        self.asked: set[str] = set()
        self._lock = threading.Lock()
        self._server = Server(self._answer, tls=authority.server_context(name, "localhost"))

    @property
    def port(self) -> int:
        return self._server.port

    def __enter__(self) -> "Reflector":
        self._server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.__exit__(*details)

    def _answer(self, request: Request) -> Response:
        presented = request.fields.get("authorization", "") or request.fields.get("x-api-key", "")
        way = request.path.rsplit("/", 1)[1]
        with self._lock:
            self.received.add(presented)
            self.asked.add(way)
        return REFLECTIONS[way](presented) if way in REFLECTIONS else Response(404)


def forms(secret: str) -> dict[str, bytes]:
    """What is looked for, made here and not by the product: a name and the bytes that the secret alone determines."""
    raw = secret.encode()
    found = {"raw": raw, "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode(), "url": urllib.parse.quote(secret, safe="").encode()}
    found["url, lower"] = "".join(c.lower() if len(c) == 3 else c for c in (urllib.parse.quote(c, safe="") for c in secret)).encode()
    found["percent"] = b"".join(b"%%%02x" % byte for byte in raw)
    found["json"] = json.dumps(secret)[1:-1].encode()
    found["html"] = html.escape(secret).encode()
    for offset in range(3):
        whole = base64.b64encode(b"\0" * offset + raw)
        core = whole[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]
        found[f"base64 at {offset}"] = core
        found[f"base64 at {offset}, url-safe"] = core.translate(bytes.maketrans(b"+/", b"-_"))
        found[f"base64 at {offset}, quoted"] = urllib.parse.quote_from_bytes(core, safe="").encode()
    return found


def searched(places: Iterable[tuple[str, bytes]], secrets: Iterable[str]) -> tuple[list[str], int]:
    """Where a form of a secret stands, and how many bytes were looked through."""
    wanted = [(name, form) for secret in secrets for name, form in forms(secret).items()]
    hits, looked = [], 0
    for place, content in places:
        looked += len(content)
        hits += [f"{place}: {name}" for name, form in wanted if form in content]
    return hits, looked
