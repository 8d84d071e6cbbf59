import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.gateway.layers.sse import EventStream, ServerEvent


def whole(stream: bytes) -> list[ServerEvent]:
    return EventStream().feed(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [ServerEvent("message", "a", "")]),
        (b"data:a\r\ndata: b\r\n\r\n", [ServerEvent("message", "a\nb", "")]),
        (b"data: a\r\r", [ServerEvent("message", "a", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [ServerEvent("message", "a", "")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [ServerEvent("x", "a", ""), ServerEvent("message", "b", "")]),
        (b"id: 7\ndata: a\n\ndata: b\n\n", [ServerEvent("message", "a", "7"), ServerEvent("message", "b", "7")]),
        (b"id: a\0b\ndata: a\n\n", [ServerEvent("message", "a", "")]),
        (b": comment\n\n:\nretry: 10\nunknown: x\ndata: a\n\n", [ServerEvent("message", "a", "")]),
        (b"event: x\n\ndata: a\n\n", [ServerEvent("message", "a", "")]),
        (b"data\n\ndata\ndata\n\n", [ServerEvent("message", "", ""), ServerEvent("message", "\n", "")]),
        (b"data:  two\n\n", [ServerEvent("message", " two", "")]),
        (b"data: \xff\n\n", [ServerEvent("message", "\ufffd", "")]),
        (b"data: a\n", []),
        (b"data: a", []),
    ],
)
def test_streams_are_read_as_the_standard_says(stream: bytes, events: list[ServerEvent]) -> None:
    """WHATWG HTML 9.2.6: its examples, its line ends, its byte order mark, its ignored fields."""
    assert whole(stream) == events


FIELDS = st.sampled_from([b"data: x", b"data", b"data:y:z", b"event: e", b"id: 1", b": c", b"", b"", b"retry: 1", b"\xef\xbb\xbf", b"data: \xe2\x82\xac"])


@settings(max_examples=300)
@given(st.lists(st.tuples(FIELDS, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20).map(lambda lines: b"".join(a + b for a, b in lines)), st.data())
def test_chunks_do_not_matter(stream: bytes, data: st.DataObject) -> None:
    """However the stream is cut, the events are the same: inside a character, between a return and its line feed, byte by byte."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, events = EventStream(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += parser.feed(stream[start:end])
    assert events == whole(stream)
    single, one_by_one = EventStream(), []
    for byte in stream:
        one_by_one += single.feed(bytes((byte,)))
    assert one_by_one == events


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_read(chunks: list[bytes]) -> None:
    """Nothing is raised, and no event holds more than its bound."""
    parser = EventStream(line_characters_max=20, event_characters_max=30)
    for chunk in chunks:
        for event in parser.feed(chunk):
            assert len(event.data) <= 30


def test_what_is_too_large_is_dropped_and_counted() -> None:
    """A line without end costs no memory; its event is dropped whole, and the next one is read."""
    parser = EventStream(line_characters_max=10, event_characters_max=12)
    assert parser.feed(b"data: " + b"x" * 50) == []
    assert parser.feed(b"y" * 50) == []
    assert parser.unfinished
    assert parser.feed(b"\ndata: tail\n\ndata: ok\n\n") == [ServerEvent("message", "ok", "")]
    assert parser.feed(b"data: 1234\ndata: 1234\ndata: 1234\n\ndata: ok\n\n") == [ServerEvent("message", "ok", "")]
    assert parser.dropped == 2
    assert not parser.unfinished
