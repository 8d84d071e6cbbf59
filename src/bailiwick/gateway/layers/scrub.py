"""What was injected into a request is taken out of its answer: a server that echoes a credential must not hand it to the agent.

Streaming: bytes in, bytes out, and only a tail that could be the beginning of a pattern is held back, so that an event that ends without one is not
delayed. Each secret is looked for raw and in the encodings in which servers echo what they were sent. It is not a boundary against a server that wants to
leak (it may reverse the bytes): that server was chosen by the operator, and already has the secret.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol
from urllib.parse import quote_from_bytes

REPLACEMENT: Final = b"[redacted by bailiwick]"
SECRET_BYTES_MIN = 6  # shorter ones stand in answers by chance (and guard nothing)
NAMES_KNOWN_MAX: Final = 256  # of fields that were found clean
_GATES: Final = (b"%", b"\\", b"&")  # rare bytes: a form that holds one is looked for only where the byte is


def encodings(secret: bytes) -> frozenset[bytes]:
    """Every form that is looked for, each the part that the secret alone determines:

    raw; base64 at each of its three offsets (RFC 4648, sections 4 and 5), without the characters that share bits with the neighbours; hexadecimal in
    either case; percent-encoded, with either case and every notion of what is reserved; escaped in JSON, with or without escaped slashes and non-ASCII;
    escaped in HTML. A secret shorter than SECRET_BYTES_MIN is looked for raw only.
    """
    forms = {secret}
    if len(secret) >= SECRET_BYTES_MIN:
        forms |= {secret.hex().encode(), secret.hex().upper().encode()}
        forms.update(_base64(secret))
        forms.update(_percent(secret))
        forms.update(_json(secret))
        forms.update(_html(secret))
    return frozenset(forms - {b""})


def _base64(secret: bytes) -> Iterable[bytes]:
    for offset in range(3):
        padded = b"\0" * offset + secret
        whole = base64.b64encode(padded + b"\0" * (-len(padded) % 3))
        first = -(-offset * 8 // 6)  # the first character all of whose bits are the secret's
        last = len(padded) * 8 // 6
        core = whole[first:last]
        yield core
        yield core.translate(bytes.maketrans(b"+/", b"-_"))
        yield core.replace(b"/", b"\\/")  # in JSON, by writers that escape slashes
        for safe in ("", "/"):  # in a query
            form = quote_from_bytes(core, safe=safe).encode()
            yield form
            yield form.replace(b"%2B", b"%2b").replace(b"%2F", b"%2f")


def _percent(secret: bytes) -> Iterable[bytes]:
    for safe in ("", "/", "-._~", "/:@!$&'()*+,;=", "!'()*"):
        form = quote_from_bytes(secret, safe=safe).encode()
        yield form
        yield re.sub(rb"%[0-9A-F]{2}", lambda escape: escape[0].lower(), form)
    everything = b"".join(b"%%%02X" % byte for byte in secret)
    yield everything
    yield everything.lower()
    yield quote_from_bytes(secret, safe=" ").replace(" ", "+").encode()  # application/x-www-form-urlencoded


def _json(secret: bytes) -> Iterable[bytes]:
    try:
        plain = secret.decode()
    except UnicodeDecodeError:
        plain = secret.decode("latin-1")
    for ascii_only in (True, False):
        form = json.dumps(plain, ensure_ascii=ascii_only)[1:-1].encode()
        yield form
        yield form.replace(b"/", b"\\/")
        for escape in (b"\\u%04x", b"\\u%04X"):  # what HTML-safe writers escape (Go, Rails; .NET)
            yield re.sub(rb"[<>&'=+`]", lambda character, escape=escape: escape % ord(character[0]), form)  # type: ignore[misc]


def _html(secret: bytes) -> Iterable[bytes]:
    plain = secret.decode("latin-1")
    yield html.escape(plain).encode("latin-1")
    yield html.escape(plain, quote=False).encode("latin-1")
    yield html.escape(plain).replace("&#x27;", "&#39;").replace("&quot;", "&#34;").encode("latin-1")


class Patterns:
    """The forms of some secrets, made ready once (about 0.1 ms a secret) for any number of answers; kept no longer than the lease they came with."""

    __slots__ = ("_folded", "_forms", "_gated", "_pattern", "_plain", "_starts", "inner", "longest", "names", "replacement")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._forms = sorted({form for secret in secrets if secret for form in encodings(secret)}, key=lambda form: (-len(form), form))
        least = [form for form in self._forms if not any(other in form for other in self._forms if len(other) < len(form))]  # enough to notice any
        self._folded = frozenset(form.lower() for form in least)
        self.names: set[bytes] = set()  # found clean before
        self._plain = [form for form in least if not any(gate in form for gate in _GATES)]
        self._gated = [(gate, [form for form in least if gate in form]) for gate in _GATES]
        self._pattern: re.Pattern[bytes] | None = None
        self._starts: re.Pattern[bytes] | None = None
        self.longest = max(map(len, self._forms), default=0)
        self.inner = frozenset(byte for form in self._forms for byte in form[:-1])
        self.replacement = _replacement(self._forms)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def __repr__(self) -> str:
        return f"Patterns({len(self._forms)} forms)"

    def occur_in(self, data: bytes) -> bool:
        for form in self._plain:
            if form in data:
                return True
        for gate, forms in self._gated:
            if forms and gate in data:
                for form in forms:
                    if form in data:
                        return True
        return False

    def clean_name(self, name: bytes) -> bool:
        """Whether a field's name, which reaches the agent in lower case, holds a form in no case."""
        if any(form in name for form in self._folded):
            return False
        if len(self.names) < NAMES_KNOWN_MAX:
            self.names.add(name)
        return True

    @property
    def pattern(self) -> re.Pattern[bytes]:
        """Matches the longest form at a position; compiled when the first one is found, which is rare."""
        if self._pattern is None:
            self._pattern = re.compile(b"|".join(map(re.escape, self._forms)), re.DOTALL)
        return self._pattern

    def beginning(self, data: bytes, at: int) -> int:
        """Where the earliest tail of `data`, at or after `at`, begins that is the beginning of a form, and not a whole one; the length if there is none."""
        end = len(data)
        if at >= end or data[-1] not in self.inner:
            return end
        if self._starts is None:
            pairs = {re.escape(form[:2]) for form in self._forms if len(form) > 2}
            firsts = {re.escape(form[:1]) for form in self._forms if len(form) > 1}
            self._starts = re.compile(b"|".join(sorted(pairs | {first + rb"\Z" for first in firsts})), re.DOTALL)
        at = max(at, end - self.longest + 1)
        while (found := self._starts.search(data, at)) is not None:
            at = found.start()
            tail = data[at:]
            if any(len(form) > len(tail) and form.startswith(tail) for form in self._forms):
                return at
            at += 1
        return end


def _replacement(forms: Sequence[bytes]) -> bytes:
    """One that neither holds a form nor can complete one with its neighbours."""
    candidates = [REPLACEMENT, b"[redacted]", *(bytes((byte,)) * 3 for byte in (*b"*#?.~", *range(256)))]
    for candidate in candidates:
        if not any(form in candidate or _overlap(form, candidate) or _overlap(candidate, form) or candidate in form for form in forms):
            return candidate
    return REPLACEMENT


def _overlap(left: bytes, right: bytes) -> bool:
    return any(left.endswith(right[:size]) for size in range(1, min(len(left), len(right)) + 1))


class WholeAnswer(Protocol):
    """What is known of its head: whether its body is compressed, and the names of its fields."""

    @property
    def encoded(self) -> bool: ...
    @property
    def names(self) -> frozenset[bytes]: ...


class Scrubber:
    """For one answer. What comes out never holds a form of a secret; where none went in, it is what went in. `found` counts what was taken out."""

    __slots__ = ("_held", "_patterns", "found")

    def __init__(self, secrets: Sequence[bytes] | Patterns) -> None:
        self._patterns = secrets if isinstance(secrets, Patterns) else Patterns(secrets)
        self._held = b""
        self.found = 0

    def passes(self, answer: WholeAnswer, out: bytes) -> bool:
        """Whether `out`, a whole answer as the agent would get it, holds nothing that would be taken out: neither a form, nor a field whose name was not
        found clean before, nor a coding that would hide one."""
        patterns = self._patterns
        return not answer.encoded and answer.names <= patterns.names and not patterns.occur_in(out)

    def feed(self, data: bytes) -> bytes:
        """What may go on now."""
        patterns = self._patterns
        if not patterns or not data:
            return data
        buffer = self._held + data if self._held else data
        hold = patterns.beginning(buffer, 0)
        if not patterns.occur_in(buffer):
            self._held = buffer[hold:]
            return buffer[:hold] if self._held else buffer
        return self._redact(buffer, hold)

    def finish(self) -> bytes:
        """The rest, once the answer has ended."""
        rest, self._held = self._held, b""
        return self.value(rest) if rest else rest

    def value(self, data: bytes) -> bytes:
        """A whole value at once: a field of a head."""
        if not self._patterns or not self._patterns.occur_in(data):
            return data
        clean, count = self._patterns.pattern.subn(lambda _: self._patterns.replacement, data)
        self.found += count
        return clean

    def fields(self, fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A head's fields, without those whose name holds a form: a name with a part taken out would be another field."""
        patterns = self._patterns
        kept = [field for field in fields if field[0] in patterns.names or patterns.clean_name(field[0])]
        if not patterns or not patterns.occur_in(b"\n".join([value for _, value in kept])):  # one look at all of them; a form never spans a line
            return kept
        return [(name, self.value(value)) for name, value in kept]

    def _redact(self, buffer: bytes, hold: int) -> bytes:
        """A match that begins in the held tail may still grow into a longer form, so it waits; one that runs into the tail ends the wait."""
        parts: list[bytes] = []
        at = 0
        while (found := self._patterns.pattern.search(buffer, at)) is not None and found.start() < hold:
            parts += (buffer[at : found.start()], self._patterns.replacement)
            at = found.end()
            self.found += 1
            if at > hold:
                hold = self._patterns.beginning(buffer, at)
        parts.append(buffer[at:hold])
        self._held = buffer[hold:]
        return b"".join(parts)
