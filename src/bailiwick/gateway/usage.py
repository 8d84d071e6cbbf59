"""The tap on a model call's answer: a copy of the bytes in as they pass, at the end what the call used.

Nothing waits for this. An answer that is cut off, is not what its endpoint sends, or is encoded in a way that is not read here leaves `complete` false and
says why; what was seen until then counts.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

import msgspec

from bailiwick.gateway.layers.sse import EventStream, ServerEvent
from bailiwick.gateway.models.answers import READERS, ModelUsage, ToolCall
from bailiwick.gateway.models.calls import ModelCall
from bailiwick.kernel import limits

__all__ = ["ModelUsage", "ToolCall", "UsageTap", "chargeable"]


def chargeable(call: ModelCall, usage: ModelUsage) -> ModelUsage:
    """The usage a budget is charged with: told numbers as told; the ceiling for what nobody told, so that a call that was broken off, with an unknown
    amount of thought behind it, is not cheaper than one that ended. An estimate of a complete answer stands: clients that ask for no usage are common."""
    given = call.input_tokens_ceiling if usage.input_tokens is None else usage.input_tokens
    written = usage.output_tokens if usage.complete or not usage.estimated else max(usage.output_tokens or 0, call.output_tokens_ceiling)
    return replace(usage, input_tokens=given, output_tokens=written)


class UsageTap:
    """One answer. `stream` is whether it is an event stream; `content_encoding` is the answer's field, None for none."""

    def __init__(self, endpoint: str, *, stream: bool, content_encoding: str | None) -> None:
        self._reader = READERS[endpoint]()
        self._events = EventStream() if stream else None
        self._buffer = bytearray()
        self._decode: Callable[[bytes], bytes] | None = None
        self._problem: str | None = None
        encoding = (content_encoding or "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._decode = _Inflater(encoding).feed
        elif encoding != "identity":
            self._problem = f"content encoding {encoding[:40]!r} is not read; ask for identity or gzip"

    def feed(self, data: bytes) -> None:
        """A copy of the next bytes of the body. Never raises for anything in them."""
        if self._problem is not None:
            return
        try:
            plain = data if self._decode is None else self._decode(data)
        except zlib.error as error:
            self._problem = f"the answer's compression is broken: {error}"
            return
        except _TooLarge:
            self._problem = f"the answer decompresses to more than {limits.BODY_BUFFER_BYTES_MAX} bytes at a time"
            return
        if self._events is not None:
            for event in self._events.feed(plain):
                self._event(event)
        elif len(self._buffer) + len(plain) > limits.BODY_BUFFER_BYTES_MAX:
            self._problem = f"an answer of more than {limits.BODY_BUFFER_BYTES_MAX} bytes is not read"
            self._buffer.clear()
        else:
            self._buffer += plain

    def finish(self) -> ModelUsage:
        """What is known, once the answer has ended, however it ended."""
        reader = self._reader
        if self._events is None and self._problem is None:
            self._whole()
        problem = self._problem or reader.problem
        if problem is None and self._events is not None and self._events.dropped:
            problem = f"{self._events.dropped} events of the answer were too large to be read"
        if problem is None and not reader.done:
            problem = "the answer ended before its last event" if self._events is not None else "the answer is not one of its endpoint"
        return reader.usage(complete=reader.done and problem is None, problem=problem)

    def _event(self, event: ServerEvent) -> None:
        if event.data == "[DONE]":
            self._reader.done = True
            return
        try:
            value = msgspec.json.decode(event.data)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            self._reader.problem = self._reader.problem or f"an event is not JSON: {error}"
            return
        if isinstance(value, dict):
            self._reader.event(value)

    def _whole(self) -> None:
        if not self._buffer:
            self._problem = "the answer is empty"
            return
        try:
            value = self._reader.parse(bytes(self._buffer))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._problem = f"the answer is not JSON: {error}"
            return
        if isinstance(value, dict):
            self._reader.whole(value)


class _TooLarge(Exception):
    pass


class _Inflater:
    """gzip (RFC 1952) and deflate, with the zlib wrapper that RFC 9110, section 8.4.1.2, asks for or without it, as some servers send it."""

    def __init__(self, encoding: str) -> None:
        self._raw_is_possible = encoding == "deflate"
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS if encoding == "deflate" else 16 + zlib.MAX_WBITS)

    def feed(self, data: bytes) -> bytes:
        try:
            plain = self._inflate.decompress(data, limits.BODY_BUFFER_BYTES_MAX)
        except zlib.error:
            if not self._raw_is_possible:
                raise
            self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
            plain = self._inflate.decompress(data, limits.BODY_BUFFER_BYTES_MAX)
        self._raw_is_possible = self._raw_is_possible and not data
        if self._inflate.unconsumed_tail:
            raise _TooLarge
        return plain
