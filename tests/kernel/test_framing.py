"""Frames: whatever arrives, split anywhere, is the frames that were sent or one PeerError."""

import json
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel import limits
from bailiwick.kernel.errors import BackendError, CallerError, Conflict, Forbidden, NotFound, PeerError
from bailiwick.kernel.framing import Done, Failure, Frame, Framer, Heartbeat, Message, RemoteFailure, Service, raised


class Say(Message, frozen=True):
    text: str
    numbers: list[int] = []


TALK = Service("talk", 3, [Say], descriptors_max=2)
HELLO = Framer(TALK).hello()


def frame(envelope: object) -> bytes:
    raw = json.dumps(envelope).encode()
    return struct.pack("!I", len(raw)) + raw


def greeted() -> Framer:
    framer = Framer(TALK)
    assert framer.receive(HELLO) == []
    return framer


MESSAGES = st.one_of(
    st.builds(Say, text=st.text(), numbers=st.lists(st.integers(-(2**63), 2**63))),
    st.just(Done()),
    st.builds(Heartbeat, number=st.integers(0, 2**53)),
)
FRAMES = st.one_of(
    st.builds(Frame, st.sampled_from(["call", "tell", "reply"]), st.integers(0, 2**62), st.integers(0, 2), MESSAGES),
    st.builds(Frame, st.just("failure"), st.integers(0, 2**62), st.just(0), st.builds(Failure, st.text(), st.text())),
)


@given(st.lists(FRAMES, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_what_was_sent_arrives_however_it_is_split(frames: list[Frame], data: st.DataObject) -> None:
    """Cut at any bytes, the same frames come out in order, and nothing is left."""
    wire = HELLO + b"".join(Framer.send(each.kind, each.message, id=each.id, fds=each.fds) for each in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    framer = Framer(TALK)
    got = [each for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True) for each in framer.receive(wire[start:end])]
    assert got == frames
    assert framer.between_frames


@given(st.binary(max_size=200), st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_garbage_is_nothing_yet_or_a_peer_error(garbage: bytes, greet: bool, data: st.DataObject) -> None:
    """No other exception, whatever the bytes and wherever they are cut; a length that promises too much is refused before it is read."""
    framer = greeted() if greet else Framer(TALK)
    cut = data.draw(st.integers(0, len(garbage)))
    try:
        framer.receive(garbage[:cut])
        framer.receive(garbage[cut:])
    except PeerError:
        return


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_another_frame_or_a_peer_error(data: st.DataObject) -> None:
    """A valid conversation with bytes changed, removed and added never raises anything else."""
    wire = bytearray(HELLO + Framer.send("call", Say(text="abc", numbers=[1, 2]), id=7) + Framer.send("tell", Heartbeat(number=1)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(wire) - 1))
        match data.draw(st.sampled_from(["change", "remove", "add"])):
            case "change":
                wire[place] = data.draw(st.integers(0, 255))
            case "remove":
                del wire[place]
            case _:
                wire.insert(place, data.draw(st.integers(0, 255)))
    try:
        Framer(TALK).receive(bytes(wire))
    except PeerError:
        return


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_frame_or_a_peer_error(envelope: object) -> None:
    """Well-formed JSON of any shape, as an envelope and as a body."""
    for wire in (frame(envelope), frame({"kind": "call", "body": envelope}), frame({"kind": "failure", "body": envelope})):
        try:
            greeted().receive(wire)
        except PeerError:
            continue


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (frame({"kind": "call", "body": {"type": "Done"}}), "the first frame is call; must be hello"),
        (frame({"kind": "hello", "body": {"service": "walk", "version": 3}}), "peer speaks 'walk' 3; must be talk 3"),
        (frame({"kind": "hello", "body": {"service": "talk", "version": 4}}), "peer speaks 'talk' 4; must be talk 3"),
        (frame({"kind": "hello", "body": {"service": "x" * 5000, "version": 3}}), "peer speaks 'xxx"),
        (HELLO + HELLO, "a second hello"),
        (HELLO + frame({"kind": "call", "fds": 3, "body": {"type": "Done"}}), "announces 3 descriptors; must be 0 to 2"),
        (HELLO + frame({"kind": "call", "fds": -1, "body": {"type": "Done"}}), "announces -1 descriptors"),
        (HELLO + frame({"kind": "shout", "body": {"type": "Done"}}), "is not understood"),
        (HELLO + frame({"kind": "call", "body": {"type": "Unknown"}}), "is not understood"),
        (HELLO + frame({"kind": "call", "body": {"type": "Say", "text": "a", "more": 1}}), "is not understood"),
        (HELLO + frame({"kind": "call", "body": {"type": "Say"}}), "is not understood"),
        (HELLO + frame({"kind": "call", "more": 1, "body": {"type": "Done"}}), "is not understood"),
        (HELLO + struct.pack("!I", limits.FRAME_BYTES_MAX + 1), "frame of 4194305 bytes; must be at most 4194304"),
        (HELLO + struct.pack("!I", 0xFFFFFFFF), "must be at most"),
        (HELLO + struct.pack("!I", 0), "is not understood"),
        (HELLO + frame({"kind": "call", "body": {"type": "Say", "text": "\ud800"}}), "is not understood"),
        (HELLO + struct.pack("!I", 2 * 10**5) + b"[" * (2 * 10**5), "is not understood"),
    ],
    ids=range(17),
)
def test_what_is_wrong_is_said(wire: bytes, said: str) -> None:
    """Each breach of the protocol is named, and a peer's own text is bounded."""
    with pytest.raises(PeerError, match=said) as caught:
        Framer(TALK).receive(wire)
    assert len(str(caught.value)) < 500


def test_a_message_too_large_or_not_writable_is_the_sender_s_error() -> None:
    """It is refused before a byte leaves, and the error does not hold the message."""
    with pytest.raises(CallerError, match=r"message Say of .* bytes") as caught:
        Framer.send("call", Say(text="s3cret" * limits.FRAME_BYTES_MAX))
    assert caught.value.code == "too-large"
    with pytest.raises(CallerError, match="cannot be written: UnicodeEncodeError") as caught:
        Framer.send("call", Say(text="s3cret\ud800"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("kind", [CallerError, NotFound, Conflict, Forbidden, PeerError])
def test_a_failure_is_raised_as_what_it_was(kind: type[CallerError]) -> None:
    """Errors that are told apart at one end are told apart at the other; others keep their code."""
    assert type(raised(Failure(kind.code, "why"))) is kind
    other = raised(Failure(BackendError.code, "why"))
    assert (type(other), other.code, str(other)) == (RemoteFailure, "backend", "why")


def test_a_service_decodes_its_own_messages_only() -> None:
    """Another service's message is a PeerError."""
    assert TALK.decode(msgspec.json.encode(Say(text="a"))) == Say(text="a")
    with pytest.raises(PeerError):
        Service("walk", 1, []).decode(msgspec.json.encode(Say(text="a")))
