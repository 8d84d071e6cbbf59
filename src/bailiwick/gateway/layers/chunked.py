"""The chunked coding (RFC 9112, 7.1), read strictly: sizes in plain hex, lines in CR LF, extensions and trailers dropped and bounded."""

import re

from bailiwick.kernel import limits

_CHUNK_LINE_BYTES_MAX = 256
_EXTENSION_BYTES_MAX = 16 * limits.KIB  # in one message: Go CVE-2023-39326 is the precedent
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class ProtocolViolation(Exception):
    """A peer broke the protocol. `code` is stable; the text names no value of the peer's; `status` is what to answer, where one can."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ChunkReader:
    """One body. `feed` gives the data and what it could not use yet; behind the end, what belongs to the next message."""

    __slots__ = ("_expects", "_extensions", "_left", "_trailers", "finished")

    def __init__(self) -> None:
        self.finished = False
        self._left = 0
        self._expects = "size"  # size, data, data-end, trailer
        self._extensions = 0
        self._trailers = 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while not self.finished:
            if self._expects == "data":
                if at == size:
                    break
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._expects = "data-end"
            elif self._expects == "data-end":
                if data[at : at + 2] != b"\r\n"[: max(0, min(2, size - at))]:
                    raise ProtocolViolation("bad-chunk", "a chunk's data is not followed by CR LF")
                if size - at < 2:
                    break
                at += 2
                self._expects = "size"
            else:
                end = self._line(data, at)
                if end < 0:
                    break
                self._take(data[at:end])
                at = end + 2
        return pieces, data[at:]

    def _line(self, data: bytes, at: int) -> int:
        """Where the line that starts at `at` ends, or -1 when that is not known yet."""
        longest = _CHUNK_LINE_BYTES_MAX if self._expects == "size" else limits.HEAD_BYTES_MAX
        end = data.find(b"\n", at, at + longest + 2)
        if end < 0:
            if len(data) - at >= longest + 2:
                raise ProtocolViolation("bad-chunk-size" if self._expects == "size" else "trailer-too-large", f"a line between chunks exceeds {longest} bytes")
            return -1
        if end == at or data[end - 1] != 0x0D:
            raise ProtocolViolation("bare-lf", "a line between chunks ends in a bare LF; must end in CR LF")
        return end - 1

    def _take(self, line: bytes) -> None:
        if self._expects == "size":
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise ProtocolViolation("bad-chunk-size", "a chunk's size is not plain hexadecimal of at most 15 digits")
            self._extensions += len(match[2] or b"")
            if self._extensions > _EXTENSION_BYTES_MAX:
                raise ProtocolViolation("bad-chunk-size", f"chunk extensions exceed {_EXTENSION_BYTES_MAX} bytes")
            self._left = int(match[1], 16)
            self._expects = "data" if self._left else "trailer"
        elif not line:
            self.finished = True
        else:
            self._trailers += len(line) + 2
            if self._trailers > limits.HEAD_BYTES_MAX:
                raise ProtocolViolation("trailer-too-large", f"trailers exceed {limits.HEAD_BYTES_MAX} bytes")
            if not _TRAILER.fullmatch(line):
                raise ProtocolViolation("malformed-field", "a trailer is not a field")
