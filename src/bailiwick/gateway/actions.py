"""From the head of an HTTP request to the action that is decided. Pure: a head in, an Action out, or Unclear when two readers could disagree.

The verb says what the request does to the other side, the resource where. What is forwarded is the target as it was sent; what is decided is its normal form
(RFC 3986, section 6.2.2), so that every spelling a server would take for the same path is decided alike. A spelling that servers take differently is
`ambiguous`, or refused where it can only be meant to deceive: dot segments, NUL and controls, a method hidden in a header.
"""

import re
import unicodedata
from itertools import product
from typing import Final
from urllib.parse import unquote, unquote_plus, unquote_to_bytes

from bailiwick.broker.inject import CREDENTIAL_FIELDS
from bailiwick.broker.template import READ_BY
from bailiwick.critic.action import Action, Body, HttpResource, Verb
from bailiwick.gateway.layers.heads import RequestHead
from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import CallerError
from bailiwick.kernel.ids import RunId

# RFC 9110, section 9.3, and RFC 5789. WebDAV's and home-made methods are unknown, hence refused: their effect is not known here.
VERBS: Final = {
    "GET": Verb.READ,
    "HEAD": Verb.READ,
    "OPTIONS": Verb.READ,
    "POST": Verb.WRITE,
    "PUT": Verb.WRITE,
    "PATCH": Verb.WRITE,
    "DELETE": Verb.DELETE,
}

GIT_UPLOAD, GIT_RECEIVE = "git-upload-pack", "git-receive-pack"
_GIT_UPLOAD_CONTENT = b"application/x-git-upload-pack-request"


def _spellings(name: str) -> list[bytes]:
    """With hyphens and with underscores, in every mixture: servers that speak CGI or WSGI take them for one (RFC 3875, section 4.1.18)."""
    parts = name.split("-")
    return ["".join(a + b for a, b in zip(parts, [*joints, ""], strict=True)).encode() for joints in product("-_", repeat=len(parts) - 1)]


# A request that asks for another method or another target than its own request line.
_METHOD_FIELDS = frozenset(s for n in ("x-http-method-override", "x-http-method", "x-method-override") for s in _spellings(n))
_TARGET_FIELDS = frozenset(s for n in ("x-original-url", "x-rewrite-url", "x-original-uri", "x-forwarded-uri", "x-override-url") for s in _spellings(n))
_LOOKED_AT = _METHOD_FIELDS | _TARGET_FIELDS | {b"connection"}
# What says how a request is read or who asks is for everybody on the way (RFC 9110, section 7.6.1): who has the next hop drop it hides what arrives.
_NOT_OF_ONE_HOP = READ_BY | CREDENTIAL_FIELDS | {b"cookie"}
_USUAL_OPTIONS = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})
_METHOD_WORD = re.compile("".join(f"(?:{letter}|%{ord(letter):x}|%{ord(letter.upper()):x})" for letter in "method"), re.IGNORECASE)
_METHOD_PARAMETERS = frozenset({"_method", "x-http-method-override", "x-http-method", "x-method-override", "$httpmethod"})

# Nothing to normalise and nothing to doubt: non-empty segments of pchar (RFC 3986, section 3.3) without escapes, `;`, or a segment of dots.
_PLAIN = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9\-._~!$&'()*+,=:@]+)*/?")
_SENDABLE = re.compile(r"[\x21\x22\x24-\x7e]*")  # visible ASCII but `#`, which begins a fragment, and a fragment is never sent
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_CONTROL_ESCAPE = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_DOUBTFUL = re.compile(r"//|[;\\]|%2[Ff]|%5[Cc]|%3[Bb]|%25[0-9A-Fa-f]{2}")
_SEPARATOR = re.compile(r"[/\\]")
# Every escape of these may be undone: no generic parser splits a path segment at them, and servers decode them before they look.
_UNDONE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@")
_DECODINGS_MAX = 4
_NO_BODY = Body()


class Unclear(CallerError):
    """The request can be read in two ways, or hides what it does: refused, whatever the boundary allows."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)


def normalise(head: RequestHead, *, scheme: str, host: str, port: int, run: RunId, agent: str, target: str | None = None, body: Body | None = None) -> Action:
    """The action a request is. `host` and `port` are the verified destination. `target` is what will be forwarded, in origin form, where that is not the
    head's own (a model endpoint behind a base URL): what is decided must be what is sent. A read that carries content is a write: servers exist that
    act on it (RFC 9110, section 9.3.1, gives such content no meaning). Unclear says code and reason; it holds nothing secret but the target."""
    method = head.method
    verb = VERBS.get(method)
    if verb is None:
        raise Unclear("method", f"method {_shown(method)} is not forwarded; must be one of {', '.join(VERBS)}")
    for name, value in head.fields:
        if name in _LOOKED_AT:
            _look_at(name, value, method)
    path, query, ambiguous = _split(head, target)
    if query:
        _check_query(query, method)
    arguments: dict[str, str] = {}
    carries = head.framing != "none" and head.length != 0
    if carries and verb is Verb.READ:
        verb = Verb.WRITE
    if path.endswith(("/info/refs", GIT_UPLOAD, GIT_RECEIVE)):
        verb, arguments = _git(head, path, query, verb)
    if body is None:
        body = _body(head) if carries else _NO_BODY
    resource = HttpResource(scheme=scheme, host=host, port=port, method=method, path=path, query=query, ambiguous=ambiguous)
    return Action(run=run, agent=agent, verb=verb, resource=resource, body=body, arguments=arguments)


def _split(head: RequestHead, target: str | None) -> tuple[str, str, bool]:
    form = head.form if target is None else "origin"
    target = head.target if target is None else target
    match form:
        case "origin":
            path, _, query = target.partition("?")
        case "absolute":  # RFC 9112, section 3.2.2
            after = target.partition("://")[2]
            at = min((i for i in (after.find("/"), after.find("?")) if i >= 0), default=len(after))
            path, _, query = after[at:].partition("?")
            path = path or "/"
        case "asterisk" if head.method == "OPTIONS" and target == "*":
            return "*", "", False
        case _:
            raise Unclear("target", f"target {_shown(target)} is not one of a {head.method} request; must be a path or an absolute URL")
    if _PLAIN.fullmatch(path) and path:
        return path, query, False
    path, ambiguous = normalise_path(path)
    return path, query, ambiguous


def normalise_path(path: str) -> tuple[str, bool]:
    """The path with its escapes normal (RFC 3986, section 6.2.2), and whether servers may read it differently. Unclear for what none should be sent."""
    if not path.startswith("/") or not _SENDABLE.fullmatch(path):
        raise Unclear("path", f"path {_shown(path)} must begin with a slash and hold visible ASCII only; percent-encode the rest")
    if _BAD_ESCAPE.search(path):
        raise Unclear("path", f"path {_shown(path)} holds a `%` that begins no escape; must be `%25`")
    decoded, ambiguous = path, bool(_DOUBTFUL.search(path))
    for _ in range(_DECODINGS_MAX):  # servers behind servers decode more than once
        if _CONTROL_ESCAPE.search(decoded):
            raise Unclear("path", f"path {_shown(path)} holds an encoded control character; there is no use for one")
        for segment in _SEPARATOR.split(unquote(decoded, errors="replace")):
            if segment.partition(";")[0].strip() in (".", ".."):
                raise Unclear("dot-segment", f"path {_shown(path)} holds a dot segment; send the path that is meant")
        if (again := unquote(decoded, errors="replace")) == decoded:
            break
        decoded = again
    else:
        raise Unclear("path", f"path {_shown(path)} is encoded more than {_DECODINGS_MAX} times; send it encoded once")
    return _ESCAPE.sub(_normal_escape, path), ambiguous or _deceives(path)


def _normal_escape(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNDONE else escape[0].upper()


def _deceives(path: str) -> bool:
    """Escapes that are not UTF-8 (an overlong slash), or that a server which folds compatibility forms reads as path syntax (a full-width one)."""
    try:
        plain = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return True
    if plain.isascii():
        return False
    folded = unicodedata.normalize("NFKC", plain)
    return any(folded.count(mark) != plain.count(mark) for mark in "/\\.;%")


def _check_query(query: str, method: str) -> None:
    if not _SENDABLE.fullmatch(query):
        raise Unclear("query", "the query holds a space, a control, `#` or a character beyond ASCII; must be percent-encoded")
    if not _METHOD_WORD.search(query):
        return
    for pair in re.split("[&;]", query):
        name, _, value = pair.partition("=")
        if unquote_plus(name).strip().lower().split("[")[0] in _METHOD_PARAMETERS and unquote_plus(value).strip().upper() != method:
            raise Unclear("method-override", f"the query parameter {_shown(name)} asks for another method than {method}; send that method itself")


def _look_at(name: bytes, value: bytes, method: str) -> None:
    if name == b"connection":
        if value not in _USUAL_OPTIONS and (named := {word.strip(b" \t").lower() for word in value.split(b",")} & _NOT_OF_ONE_HOP):
            raise Unclear("connection-option", f"Connection names {text(min(named))}, which is for everybody on the way; leave it out of Connection")
    elif name in _METHOD_FIELDS:
        if value.strip().upper() != method.encode():
            raise Unclear("method-override", f"the field {text(name)} asks for another method than {method}; send that method itself")
    else:
        raise Unclear("target-override", f"the field {text(name)} asks for another target than the request line; leave it out")


def _git(head: RequestHead, path: str, query: str, verb: Verb) -> tuple[Verb, dict[str, str]]:
    """Git's smart HTTP (gitprotocol-http): what a client sends to fetch is marked, and `git` says whether it is a read; the discovery before a push is part
    of the push."""
    if path.endswith("/info/refs"):
        asked = unquote_plus(query)
        if GIT_RECEIVE in asked:
            return (Verb.WRITE if verb is Verb.READ else verb), {"git": "receive-pack"}
        return verb, ({"git": "upload-pack"} if GIT_UPLOAD in asked else {})
    if path.endswith("/" + GIT_UPLOAD) and head.method == "POST" and not query:
        kinds = [value for name, value in head.fields if name == b"content-type"]
        if kinds == [_GIT_UPLOAD_CONTENT]:
            return verb, {"git": "upload-pack"}
    if path.endswith("/" + GIT_RECEIVE):
        return verb, {"git": "receive-pack"}
    return verb, {}


def _body(head: RequestHead) -> Body:
    kinds = [value for name, value in head.fields if name == b"content-type"]
    if len(kinds) > 1:
        raise Unclear("content-type", f"{len(kinds)} Content-Type fields; must be at most one (RFC 9110, 5.3)")
    return Body(content_type=text(kinds[0])) if kinds else _NO_BODY


def _shown(part: str) -> str:
    return repr(part if len(part) <= 120 else f"{part[:117]}...")
