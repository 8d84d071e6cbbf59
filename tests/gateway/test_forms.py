"""A form filled in is the event: byte for byte what the record's own encoder writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bailiwick.critic.action import Action, HttpResource, Verb
from bailiwick.critic.decision import Allow
from bailiwick.gateway import events, forms
from bailiwick.gateway.layers.heads import RequestHead
from bailiwick.gateway.repeats import Repeat
from bailiwick.gateway.target import Target
from bailiwick.gateway.upstream import Destination
from bailiwick.kernel.ids import RunId, SequenceOfIds
from bailiwick.record.event import decode, encode

PATH = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60)
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
COUNT = st.integers(0, 2**40)


def repeat(path: str, query: str, rules: list[str], agent: str) -> Repeat:
    resource = HttpResource(scheme="https", host="config.internal", port=8443, method="GET", path="/" + path, query=query)
    action = Action(run=RunId("run-1"), agent=agent, verb=Verb.READ, resource=resource)
    head = RequestHead("GET", "/" + path, "origin", "config.internal", (), "none", None, True, False, False)
    target = Target("transparent", "https", "config.internal", 8443, "/" + path, Destination("config.internal", 8443, True))
    return Repeat(head, target, action, Allow(rules=tuple(rules)), None, None, b"1234567")


@given(PATH, PATH, st.lists(ANY, max_size=3), ANY, COUNT, COUNT, st.integers(200, 599), st.sampled_from(["10.0.0.1", "2001:db8::1"]))
def test_a_form_filled_in_is_what_the_encoder_writes(
    path: str, query: str, rules: list[str], agent: str, size: int, duration: int, status: int, address: str
) -> None:
    """Both events, whatever stands in the path, the rules and the agent's name."""
    known, ids = repeat(path, query, rules, agent), SequenceOfIds()
    action, event = ids.action(), ids.event()
    raw = known.intent(event, action).encode()
    built = events.decided(event, action, known.action, Allow(rules=tuple(rules)), via="transparent")
    assert raw == encode(with_time(built, raw))
    raw = known.outcome(event, action, address, status=status, answer_bytes=size, duration_ms=duration).encode()
    outcome = events.Outcome()
    outcome.result, outcome.status, outcome.address, outcome.answer_bytes, outcome.duration_ms = "answered", status, address, size, duration
    outcome.request_bytes = 7
    assert raw == encode(with_time(events.finished(event, action, known.action, outcome), raw))


def with_time(event: object, raw: bytes) -> object:
    values = {name: getattr(event, name) for name in event.__struct_fields__}  # type: ignore[attr-defined]
    return type(event)(**{**values, "time": decode(raw).time})


def test_an_event_that_holds_a_hole_of_its_own_is_no_form() -> None:
    """Should anybody ever know the token, what he writes with it does not become a hole."""
    hole = forms._hole("id")
    with pytest.raises(forms.NoForm):
        repeat(hole, "", [hole], "deployer")


@given(st.integers(0, 2**62))
def test_a_stamp_is_the_clocks_timestamp(moment: int) -> None:
    """Written from nanoseconds, in any order of moments, it is what the slow way writes."""
    stamp = events.Stamp()
    for now in (moment, moment + 999_999_999, moment + 1_000_000_000, max(0, moment - 1)):
        seconds, nanoseconds = divmod(now, 1_000_000_000)
        slow = events.datetime.fromtimestamp(seconds, events.UTC).strftime("%Y-%m-%dT%H:%M:%S")
        assert stamp(lambda now=now: now) == f"{slow}.{nanoseconds // 1_000:06d}Z"
