"""Patterns of hosts and paths: how a rule names them, how Cedar asks for them, and how a request's host and path are read before either is compared.

Cedar's `like` has one wildcard, which crosses slashes. So a path is compared segment by segment, each a fact of its own (`front1`, `back1`, ...): a
`like` on one segment has no slash to cross. A literal path, or a literal one that ends in `/**`, needs no such facts.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

SEGMENTS_MAX = 16  # on either side of `**`, in a pattern with a `*`; each is a fact the critic must be told
DEFAULT_PORTS = (80, 443)

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@")  # RFC 3986 pchar, unescaped
_UNCLEAR = re.compile(r"[^!-~]|[\\?#]|//|%(?![0-9A-F]{2})|%(?:2F|5C|7F|[01][0-9A-F])|%25[0-9A-Fa-f]{2}")


def normal_host(host: str) -> str | None:
    """Lower case, without the trailing dot; an address in its shortest form, without brackets, IPv4 in IPv6 as IPv4. None for what is neither a name
    nor an address."""
    name = host.lower().removesuffix(".")
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        pass
    else:
        inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return None if "%" in bare else str(inner or address)  # (a zone, fe80::1%eth0, means something on one machine only)
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or _NUMERIC.fullmatch(labels[-1]):
        return None  # (a numeric last label: 0x7f.1 and 2130706433 are addresses to some resolvers and names to others)
    return name


def normal_path(path: str) -> str:
    """The path as it is compared: escapes of characters that need none are undone, the others in capitals."""

    def plain(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _PLAIN else match[0].upper()

    return _ESCAPE.sub(plain, path) if "%" in path else path


def is_ambiguous(path: str) -> bool:
    """Whether two servers may read the normal `path` differently: encoded slashes, empty or dot segments, double escapes, control characters."""
    if not path.startswith("/") or _UNCLEAR.search(path):
        return True
    return "/." in path and any(segment.partition(";")[0] in (".", "..") for segment in path.split("/"))


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`name` exactly, or with `below`, names of one or more labels below it. Without a port a grant means 80 and 443, a refusal means all."""

    name: str
    below: bool = False
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "HostPattern":
        """ValueError for what is not `name`, `*.name`, or either with `:port`."""
        host, port = _split_port(text)
        below = host.startswith("*.")
        bare = host[2:] if below else host
        if "*" in bare:
            raise ValueError(f"host {text!r} has a * that is not its whole first label; write a name such as api.example.org, or *.example.org")
        if not bare.isascii():
            raise ValueError(f"host {text!r} is not ASCII; write its xn-- form")
        name = normal_host(bare)
        if name is None:
            raise ValueError(f"host {text!r} is not a host name; must be a name such as api.example.org, *.example.org or api.example.org:8443")
        if below and _is_address(name):
            raise ValueError(f"host {text!r} is an address with a *; write the address alone")
        return cls(name, below, port)

    def covers(self, other: "HostPattern") -> bool:
        """Whether every name of `other` is one of these. Ports apart."""
        if self.below:
            return other.name.endswith("." + self.name) or (other.below and other.name == self.name)
        return not other.below and other.name == self.name

    def matches(self, host: str) -> bool:
        return host.endswith("." + self.name) if self.below else host == self.name


def _split_port(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", text)
    if match is None:
        raise ValueError(f"host {text!r} is not understood; must be a name, with :port if it is not 80 or 443, and an IPv6 address in brackets")
    port = int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"host {text!r} has the port {port}; must be within 1 and 65535")
    return match[1], port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class PathPattern:
    """`front`, then any number of segments if `deep`, then `back`. A `*` in a segment is any text without a slash; as a whole segment, not empty."""

    front: tuple[str, ...]
    deep: bool = False
    back: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "PathPattern":
        """ValueError for a pattern that no path can match, or that cannot be asked of Cedar exactly."""
        if not text.startswith("/"):
            raise ValueError(f"path {text!r} does not begin with a slash; must be such as /v1/staging/**")
        written = normal_path(quote(text, safe="/%" + "".join(_PLAIN)))
        if is_ambiguous(written) or any(mark in text for mark in "?#\\"):
            raise ValueError(f"path {text!r} holds what no rule may match (an empty or dot segment, an escaped slash, a query); write the plain path")
        segments = tuple(written[1:].split("/"))
        deep = [index for index, segment in enumerate(segments) if segment == "**"]
        if any("**" in segment for segment in segments if segment != "**"):
            raise ValueError(f"path {text!r} has a ** inside a segment; ** must be a whole segment, as in /v1/**")
        if len(deep) > 1:
            raise ValueError(f"path {text!r} has more than one **; keep one, or write a rule for each depth with *")
        pattern = cls(segments[: deep[0]], True, segments[deep[0] + 1 :]) if deep else cls(segments)
        if not pattern.is_literal and max(len(pattern.front), len(pattern.back)) > SEGMENTS_MAX:
            raise ValueError(f"path {text!r} has more than {SEGMENTS_MAX} segments on a side of **; shorten it")
        return pattern

    @property
    def is_literal(self) -> bool:
        """Whether it is plain text, or plain text and then `/**`."""
        return not self.back and not any("*" in segment for segment in self.front)

    @property
    def depths(self) -> tuple[int, int]:
        """How many segments must be told from the front, and from the back."""
        return (0, 0) if self.is_literal else (len(self.front), len(self.back))

    @property
    def lead(self) -> tuple[str, ...]:
        """The literal segments every match begins with. The last segment before `**` is among them, since `/**` needs a slash after it."""
        literal: list[str] = []
        for segment in self.front:
            if "*" in segment:
                break
            literal.append(segment)
        return tuple(literal)

    def conditions(self) -> list[str]:
        """Cedar expressions that all hold exactly for the paths it matches."""
        if self.is_literal:
            text = "/".join(("", *self.front))
            return [f"context.path like {like(text + '/', '*')}"] if self.deep else [f"context.path == {literal(text)}"]
        count = len(self.front) + len(self.back)
        # `**` takes at least what is after its slash: one segment, perhaps empty, when nothing follows it.
        asked = [f"context.segments >= {count + (not self.back)}" if self.deep else f"context.segments == {count}"]
        asked += [_segment(f"context.front{index}", segment) for index, segment in enumerate(self.front, 1)]
        return asked + [_segment(f"context.back{index}", segment) for index, segment in enumerate(reversed(self.back), 1)]

    def covers(self, other: "PathPattern") -> bool:
        """Whether every path of `other` is one of these; False also where it is too hard to say."""
        if self == other:
            return True
        if self.deep and self.is_literal:
            prefix = self.front
            longer = len(other.front) > len(prefix) or (other.deep and len(other.front) == len(prefix))
            return longer and other.lead[: len(prefix)] == prefix
        return False


def _segment(fact: str, pattern: str) -> str:
    if pattern == "*":
        return f'{fact} != ""'
    if "*" not in pattern:
        return f"{fact} == {literal(pattern)}"
    pieces: list[str] = []
    for index, piece in enumerate(pattern.split("*")):
        pieces += ["*", piece] if index else [piece]
    return f"{fact} like {like(*pieces)}"


def literal(text: str) -> str:
    """A Cedar string: everything but plain ASCII is escaped, so that no text can end it."""
    return f'"{_escaped(text)}"'


def like(*pieces: str) -> str:
    """A Cedar pattern of pieces, among which a lone `*` is the wildcard."""
    return '"' + "".join("*" if piece == "*" else _escaped(piece).replace("*", "\\*") for piece in pieces) + '"'


def _escaped(text: str) -> str:
    return "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text)


def literals(texts: Iterable[str]) -> str:
    return "[" + ", ".join(literal(text) for text in texts) + "]"
