"""Server-sent events read as they pass (WHATWG HTML, section 9.2.6, "Interpreting an event stream"): a copy of the bytes in, whole events out.

Nothing waits for this parser. A line or an event larger than its bound is dropped and counted, never kept.
"""

import codecs
import re
from dataclasses import dataclass

LINE_CHARACTERS_MAX = 4 * 1024 * 1024  # a completed answer comes as one line of the event that ends its stream
EVENT_CHARACTERS_MAX = 8 * 1024 * 1024
_LINE_END = re.compile("\r\n|\n|\r")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """`kind` is the event's type, `message` when it names none."""

    kind: str
    data: str
    last_id: str


class EventStream:
    """One stream. `dropped` counts the lines and events that were too large; `unfinished` is whether bytes came after the last whole event."""

    def __init__(self, *, line_characters_max: int = LINE_CHARACTERS_MAX, event_characters_max: int = EVENT_CHARACTERS_MAX) -> None:
        self.dropped = 0
        self._line_max, self._event_max = line_characters_max, event_characters_max
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False
        self._after_return = False  # a line feed that comes next belongs to the line already ended
        self._rest: list[str] = []
        self._rest_size = 0
        self._skipping = False
        self._kind, self._last_id = "", ""
        self._data: list[str] = []
        self._data_size = 0
        self._spoilt = False

    @property
    def unfinished(self) -> bool:
        return bool(self._rest_size or self._data or self._kind or self._skipping or self._spoilt)

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that these bytes complete, in order. Never raises: what is not UTF-8 becomes U+FFFD, what is no field is ignored."""
        chunk = self._decoder.decode(data)
        if not chunk:
            return []
        if not self._started:
            self._started = True
            chunk = chunk.removeprefix(_BOM)
        if self._after_return and chunk:
            self._after_return = False
            chunk = chunk.removeprefix("\n")
        events: list[ServerEvent] = []
        at = 0
        for end in _LINE_END.finditer(chunk):
            self._line(chunk[at : end.start()], events)
            at = end.end()
        self._after_return = chunk.endswith("\r")
        self._keep(chunk[at:])
        return events

    def _keep(self, part: str) -> None:
        if not part or self._skipping:
            return
        self._rest_size += len(part)
        if self._rest_size > self._line_max:
            self._rest, self._rest_size, self._skipping = [], 0, True
            self.dropped += 1
        else:
            self._rest.append(part)

    def _line(self, part: str, events: list[ServerEvent]) -> None:
        self._keep(part)
        if self._skipping:
            self._skipping = False
            self._spoilt = True  # the event that this line was part of is not whole
            return
        line = "".join(self._rest)
        self._rest, self._rest_size = [], 0
        if not line:
            self._dispatch(events)
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            self._field(name, value.removeprefix(" "))

    def _field(self, name: str, value: str) -> None:
        match name:
            case "data":
                self._data_size += len(value) + 1
                if self._data_size > self._event_max:
                    self.dropped += not self._spoilt
                    self._data, self._spoilt = [], True
                elif not self._spoilt:
                    self._data.append(value)
            case "event":
                self._kind = value
            case "id" if "\0" not in value:
                self._last_id = value
            case _:  # `retry` matters to a client that reconnects, which we do not
                return

    def _dispatch(self, events: list[ServerEvent]) -> None:
        if self._data and not self._spoilt:
            events.append(ServerEvent(self._kind or "message", "\n".join(self._data), self._last_id))
        self._kind, self._data, self._data_size, self._spoilt = "", [], 0, False
