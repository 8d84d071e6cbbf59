"""A gateway worker that was taken over. It serves its own runs and may say anything of them; what it must not have is all the rest."""

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.hostile import intruder
from tests.e2e.hostile.intruder import Attempt, Stopped, ask

from bailiwick.critic.enforcement import HoldSettled, ReportUsage, Usage
from bailiwick.gateway.links import GovernorLink
from bailiwick.kernel.accounts import Role
from bailiwick.kernel.framing import Message
from bailiwick.record.event import KINDS, Event, encode
from bailiwick.record.messages import RECORDER, AppendEvents, EventsAppended, SubscribeEvents, TakeCheckpoint

NOW = "2026-01-01T00:00:00.000000Z"


def attempts(facts: dict[str, Any], given: dict[str, Any]) -> Iterator[Attempt]:
    layout, own, other, neighbour = given["layout"], facts["own"], facts["other"], facts["neighbour"]
    yield from intruder.descriptors()
    secret = {name: Path(path) for name, path in facts["secret"].items()}
    yield from intruder.files(secret, written={name: Path(path) for name, path in facts["written"].items()})
    for name in ("record.db", "state.db"):
        yield f"open {name} as a database", lambda name=name: intruder.database(Path(facts["secret"][name]))
    yield from intruder.others(facts["pids"])
    yield from intruder.kernel()
    yield from intruder.sockets(layout, run=other, targets=intruder.orders(other, neighbour))
    yield from intruder.sockets(layout, run=own, targets={given["name"]: intruder.orders(own, given["name"])[given["name"]]})
    yield from intruder.adoptions(layout, other, [given["name"], neighbour])
    yield "lease of another worker's run", lambda: intruder.use_lease(layout, other)
    yield "lease of no run", lambda: intruder.use_lease(layout, "run-of-nobody")
    yield "lease for another host", lambda: intruder.use_lease(layout, own, "denied.internal")
    yield from _to_the_governor(own, other)
    yield from _to_the_record(layout.socket("recorder"), own, facts["event"])
    yield "OWN lease of its own run", lambda: intruder.use_lease(layout, own)


def _to_the_governor(own: str, other: str) -> Iterator[Attempt]:
    """On the channel that the governor itself has opened."""
    link = next(each for each in gc.get_objects() if type(each) is GovernorLink)

    def say(message: Message) -> str:
        try:
            return str(asyncio.run_coroutine_threadsafe(link._call(message), link._loop).result(10))
        except Exception as error:
            raise Stopped(f"{type(error).__name__}: {error}") from error

    for message in intruder.governor_words(other):
        yield f"governor: {type(message).__name__} of another worker's run", lambda message=message: say(message)
    for message in intruder.governor_words(own):
        yield f"governor: {type(message).__name__} that the boundary does not know", lambda message=message: say(message)
    yield "governor: HoldSettled", lambda: say(HoldSettled(hold="hold-1", state="granted", reason=""))

    def understate() -> str:
        """Told, not asked: that it changes nothing is seen by who asks the governor afterwards."""
        asyncio.run_coroutine_threadsafe(link.tell(ReportUsage(run=other, used=Usage(calls=666), parked=1)), link._loop).result(10)
        raise Stopped("told")

    yield "governor: ReportUsage of another worker's run", understate


def _to_the_record(path: str, own: str, known: str) -> Iterator[Attempt]:
    def append(*texts: str) -> list[int]:
        answer = ask(path, RECORDER, AppendEvents(events=list(texts)))
        assert isinstance(answer, EventsAppended)
        return answer.sequences

    def event(kind: str, number: str, **more: Any) -> str:
        return encode(Event(id=f"hostile.{number}", kind=kind, time=NOW, run=own, body=more)).decode()  # type: ignore[arg-type]

    for kind, each in KINDS.items():
        if Role.GATEWAY in each.writers:
            yield f"OWN append {kind}", lambda kind=kind: append(event(kind, kind))
        else:
            yield f"append {kind}", lambda kind=kind: append(event(kind, kind))
    good = event("attempt.refused", "malformed", x=0)
    for name, text in {
        "nothing": "",
        "no JSON": "{",
        "an unknown kind": good.replace("attempt.refused", "attempt.allowed"),
        "an unknown field": good.replace('{"body"', '{"approved":true,"body"'),
        "white space": good.replace(",", ", "),
        "a field twice": good.replace('"kind"', '"kind":"run.output","kind"'),
        "a float": good.replace('"body":{"x":0}', '"body":{"x":1.5}'),
        "a large integer": good.replace('"body":{"x":0}', '"body":{"x":9007199254740993}'),
        "a lone surrogate": good.replace('"body":{"x":0}', '"body":{"x":"\\ud800"}'),
        "no id": good.replace('"id":"hostile.malformed",', ""),
        "too much": good.replace('"body":{"x":0}', '"body":{"x":"' + "x" * 300_000 + '"}'),
        "depth": good.replace('"body":{"x":0}', '"body":{"x":' + "[" * 5_000 + "]" * 5_000 + "}"),
        "a sequence of its own": good.replace('{"body"', '{"seq":1,"body"'),
        "another writer": good.replace('{"body"', '{"writer":"governor","body"'),
    }.items():
        yield f"append {name}", lambda text=text: append(text)
    yield "append a good one with one that is not allowed", lambda: append(event("attempt.refused", "together"), event("hold.signed", "signed"))
    yield "rewrite an event by its id", lambda: append(encode(Event(id=known, kind="attempt.refused", time=NOW, body={"rewritten": True})).decode())  # type: ignore[arg-type]
    for name, frame in {
        "no frame": b"\xff\xff\xff\xff",
        "an unknown message": b'\0\0\0\x3d{"kind":"call","id":1,"body":{"type":"DeleteEvents","first":1}}',
        "a larger frame than there may be": b"\x7f\xff\xff\xff{",
    }.items():
        yield f"recorder: {name}", lambda frame=frame: ask(path, RECORDER, frame)
    yield "recorder: SubscribeEvents", lambda: ask(path, RECORDER, SubscribeEvents(sequence=1))
    yield "OWN recorder: TakeCheckpoint", lambda: ask(path, RECORDER, TakeCheckpoint())

    def crowd_out() -> str:
        """As many connections as it may have, and more: the others' are not among them."""
        import socket

        with contextlib.ExitStack() as held:
            for _ in range(200):
                sock = held.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(5)
                with contextlib.suppress(OSError):
                    sock.connect(path)
            raise Stopped("200 connections")

    yield "recorder: connections", crowd_out
