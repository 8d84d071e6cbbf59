from pathlib import Path

from bailiwick.critic.enforcement import Usage
from bailiwick.governor.reading import Reading
from bailiwick.kernel.accounts import Role
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.ids import ActionId, EventId, RunId
from bailiwick.kernel.layout import Layout
from bailiwick.record.commit import Append, Committer
from bailiwick.record.event import KINDS, Event, encode
from bailiwick.record.repository import FILE


def test_what_a_run_used_is_read_from_the_record(tmp_path: Path) -> None:
    """Every bound of a budget has its usage there, so that a worker that is started anew gives none of it back."""
    layout = Layout(tmp_path)
    committer = Committer(layout.record / FILE, SystemClock())
    spent = {"input_tokens": 3, "output_tokens": 4, "cost_microusd": 5, "body": {"request_bytes": 600}}
    events = [
        Event(id=EventId(f"e{n}"), kind=kind, time="t", run=RunId("run-1"), action=ActionId("a"), verb="write", **fields)  # type: ignore[arg-type]
        for n, (kind, fields) in enumerate([("action.decided", {"decision": "allow"}), ("action.finished", spent)])
    ]
    assert all(Role.GATEWAY in KINDS[event.kind].writers for event in events)
    committer.commit([Append([(encode(event), event) for event in events], ["gateway-0"] * len(events))])
    reading = Reading(layout)
    used = reading.usage("run-1")
    reading.close()
    committer.close()
    assert used == Usage(calls=1, writes=1, tokens=7, microusd=5, egress_bytes=600)


def test_the_names_of_a_run_are_read_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    """Told to a worker that was started anew, they give every name the address the agent knows it by; of two events for one address the last stands."""
    layout = Layout(tmp_path)
    committer = Committer(layout.record / FILE, SystemClock())
    told = [
        ("b.example", "198.18.1.1"),
        ("a.example", "198.18.1.0"),
        ("old.example", "198.18.1.2"),
        ("c.example", "198.18.1.2"),
        ("far.example", "198.18.10.0"),
    ]
    events = [
        Event(id=EventId(f"e{n}"), kind="name.asked", time="t", run=RunId("run-1"), resource=name, body={"address": address})
        for n, (name, address) in enumerate(told)
    ]
    committer.commit([Append([(encode(event), event) for event in events], ["gateway-0"] * len(events))])
    reading = Reading(layout)
    names = reading.names("run-1")
    reading.close()
    committer.close()
    assert names == ["a.example", "b.example", "c.example", "far.example"]
