"""kill -9 of every process, in turn, at random moments, under load; and after each what must hold is asked of the product, the service and the machine.

    python -m tests.e2e.kills --rounds 50 [--seed 7] [--runs 3]

One round kills each of the processes once, in random order, then the parent of them all. Prints one JSON line; exits with 1 when anything was lost,
done twice, or left behind, and says what.
"""

import argparse
import hashlib
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.e2e import load
from tests.e2e.installation import Installation

from bailiwick.cli.demo.remains import remains
from bailiwick.governor.views import HoldView, RunView, StatusView
from bailiwick.kernel.errors import BailiwickError
from bailiwick.record.verify import verify_export

PROCESSES = ("recorder", "broker", "launcher", "governor", "gateway-0", "gateway-1")
SUPERVISOR = "supervisor"
WHOLE_SECONDS_MAX = 20.0
CAUSES = {"exited", "killed", "wall", "memory", "pids", "disk", "refused", "sandbox", "lost"}
_ARRIVALS_BEFORE_MAX = 40  # a moment is counted in requests that arrived, so that it falls into every phase of one
_MOMENT_SECONDS_MAX = 1.0
_REREAD = 300  # events of before that are read again after each kill; all of them at the end


@dataclass(slots=True)
class Findings:
    """What must be empty at the end, each entry a sentence."""

    acknowledged_lost: list[str] = field(default_factory=list)
    forwarded_twice: list[str] = field(default_factory=list)
    without_intent: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    holds_lost: list[str] = field(default_factory=list)
    unnamed_ends: list[str] = field(default_factory=list)
    not_whole: list[str] = field(default_factory=list)

    def all(self) -> dict[str, list[str]]:
        return {name: getattr(self, name) for name in self.__slots__}


class Trial:
    """An installation under load, and what is known of it. `round` may be called any number of times; `conclude` ends it."""

    def __init__(self, installed: Installation, service: load.CountingService, chance: random.Random, runs: int) -> None:
        self.findings = Findings()
        self.kills: Counter[str] = Counter()
        self.recovered: dict[str, list[float]] = defaultdict(list)
        self.runs: list[str] = []
        self.installed = installed
        self.service = service
        self._chance = chance
        self._target = runs
        self._known: dict[int, str] = {}  # digest of each event seen, by sequence number
        self._intents: dict[str, datetime] = {}  # path of an allowed write: when it was on file
        self._redeemed: Counter[str] = Counter()  # by run
        self._open: dict[str, str] = {}  # hold: its run, of holds that are not over
        self._checked = 0  # arrivals
        self._ended: set[str] = set()

    @property
    def live(self) -> list[str]:
        return [run for run in self.runs if run not in self._ended]

    def begin(self) -> None:
        """As many runs as there should be, each of them writing and with its one held write parked."""
        while len(self.live) < self._target:
            self.runs.append(self.installed.begin(load.AGENT, f"count {len(self.runs)}"))
        self.progress("after the start")
        self.installed.wait(lambda: {hold.run for hold in self._pending()} | self._through() >= set(self.live), "the held write of every run")

    def round(self) -> None:
        names = list(PROCESSES)
        self._chance.shuffle(names)
        for name in names:
            self.kill(name)
        self.kill_all()

    def kill(self, name: str) -> None:
        """One process; then all is whole again by itself, and the runs go on (or, without their launcher, are over and said to be)."""
        self.begin()
        self._moment()
        if self._chance.random() < 0.3:
            self._approve_one()
        pid = self.installed.kill(name)
        self.kills[name] += 1
        self._recover(name, pid)
        if name == "launcher":
            self._await_ends(self.live)
        else:
            self.progress(f"after {name} was killed")
        self.check()

    def kill_all(self) -> None:
        """The parent: everything dies with it; what is started next takes away what was left and ends the runs."""
        self.begin()
        self._moment()
        pids = self.installed.pids()
        parent = _parent_of(pids["governor"])
        os.kill(parent, 9)
        self.kills[SUPERVISOR] += 1
        self._gone([parent, *pids.values()])
        begun = time.monotonic()
        self.installed.start()
        self._whole()
        self.recovered[SUPERVISOR].append(time.monotonic() - begun)
        self._await_ends(self.live)
        self.check()

    def check(self) -> None:
        """What must hold at any moment."""
        self._read_events()
        self._reread(self._chance.randrange(max(1, len(self._known) - _REREAD + 1)), _REREAD)
        self._check_arrivals()
        self._check_holds()
        if left := self.installed.left(*self._ended):
            self.findings.left_behind += left

    def conclude(self) -> None:
        """Grants what is held, ends everything, and looks at the whole of it once more."""
        self.begin()
        self.installed.wait(self._granted, "every held write", 60.0)
        for run in self.live:
            self.installed.api.post(f"/v1/runs/{run}/kill", {"reason": "the trial is over"}, RunView)
        self._await_ends(self.live, cause="killed")
        self.check()
        self._reread(0, len(self._known))
        self._check_export()
        views = self.installed.api.get("/v1/runs", list[RunView], limit=1000)
        self.findings.unnamed_ends += [
            f"{view.run} is {view.state}, cause {view.cause!r}" for view in views if view.state != "ended" or view.cause not in CAUSES
        ]
        if missing := set(self.runs) - {view.run for view in views}:
            self.findings.acknowledged_lost += [f"run {run} is unknown" for run in missing]
        self.installed.stop()
        self.findings.left_behind += self.installed.left(*self.runs)

    # Moments and recovery

    def _moment(self) -> None:
        wanted = len(self.service.arrived) + self._chance.randrange(_ARRIVALS_BEFORE_MAX)
        until = time.monotonic() + self._chance.random() * _MOMENT_SECONDS_MAX
        while len(self.service.arrived) < wanted and time.monotonic() < until:
            time.sleep(0.001)

    def _recover(self, name: str, pid: int) -> None:
        begun = time.monotonic()

        def whole() -> bool:
            return self.installed.pids().get(name, pid) != pid and self._is_whole()

        try:
            self.installed.wait(whole, f"a whole installation after {name} was killed", WHOLE_SECONDS_MAX)
        except AssertionError as error:
            self.findings.not_whole.append(str(error))
            raise
        self.recovered[name].append(time.monotonic() - begun)

    def _whole(self) -> None:
        self.installed.wait(self._is_whole, "a whole installation", WHOLE_SECONDS_MAX)

    def _is_whole(self) -> bool:
        processes = self.installed.api.get("/v1/status", StatusView).processes
        return {process.name for process in processes if process.state == "up"} == set(PROCESSES)

    def progress(self, when: str) -> None:
        """Each run gets another write through."""
        before = {run: self.service.written_by(run) for run in self.live}
        for run, count in before.items():
            self.installed.wait(lambda run=run, count=count: self.service.written_by(run) > count, f"a write of {run} {when}")  # type: ignore[misc]

    def _await_ends(self, runs: list[str], cause: str = "lost") -> None:
        for run in runs:
            view = self.installed.wait_ended(run).view
            if view.cause != cause:
                self.findings.unnamed_ends.append(f"{run} ended with cause {view.cause!r} ({view.detail}); must be {cause}")
            self._ended.add(run)

    def _gone(self, pids: list[int]) -> None:
        def dead() -> bool:
            alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
            inside = [left for left in remains(self.live, sandboxes=self.installed.layout.sandboxes) if left.startswith("process")]
            return not alive and not inside

        self.installed.wait(dead, "the death of everything with its parent", 10.0)

    # Holds

    def _pending(self) -> list[HoldView]:
        return self.installed.api.get("/v1/holds", list[HoldView], state="pending")

    def _approve_one(self) -> None:
        for hold in self._pending()[:1]:
            self._approve(hold.hold)

    def _approve(self, hold: str) -> None:
        try:
            self.installed.api.post(f"/v1/holds/{hold}/approve", {"why": "as asked"}, HoldView)
        except BailiwickError as error:
            print(f"approving {hold}: {error}", file=sys.stderr)

    def _granted(self) -> bool:
        for hold in self._pending():
            self._approve(hold.hold)
        return self._through() >= set(self.live)

    def _through(self) -> set[str]:
        """Runs whose held write arrived."""
        return {path.rsplit("/", 1)[1] for path in self.service.writes() if path.startswith("/v1/production/")}

    def _check_holds(self) -> None:
        """What was open before the question and is not over after it must be in the answer."""
        self._read_events()
        before = dict(self._open)
        pending = {hold.hold for hold in self._pending()}
        self._read_events()
        for hold, run in before.items():
            if run in self.live and hold in self._open and hold not in pending:
                self.findings.holds_lost.append(f"{hold} of {run} was open and is not pending any more")

    # The record

    def _read_events(self) -> None:
        for recorded in self.installed.api.lines("/v1/events", after=len(self._known)):
            sequence = recorded["sequence"]
            if sequence != len(self._known) + 1:
                self.findings.acknowledged_lost.append(f"event {len(self._known) + 1} is missing before {sequence}")
            self._known[sequence] = _digest(recorded)
            self._note(recorded)

    def _note(self, recorded: dict[str, Any]) -> None:
        event = recorded["event"]
        body = event.get("body", {})
        match event["kind"]:
            case "action.decided" if event["verb"] == "write" and event["decision"] == "allow":
                path = event["resource"].removeprefix(f"https://{load.HOST}")
                self._intents.setdefault(path, datetime.fromisoformat(recorded["received"]))
            case "hold.opened":
                self._open[body["hold"]] = event["run"]
            case "hold.redeemed":
                self._redeemed[event["run"]] += 1
                self._open.pop(body["hold"], None)
            case "hold.closed" | "hold.signed":
                self._open.pop(body["hold"], None)
            case _:
                pass

    def _reread(self, after: int, count: int) -> None:
        """Events that were acknowledged are where they were, as they were."""
        seen = 0
        for recorded in self.installed.api.lines("/v1/events", after=after):
            if seen == count or recorded["sequence"] not in self._known:
                break
            seen += 1
            if _digest(recorded) != self._known[recorded["sequence"]]:
                self.findings.acknowledged_lost.append(f"event {recorded['sequence']} is another than it was")
        if seen < min(count, len(self._known) - after):
            self.findings.acknowledged_lost.append(f"only {seen} events after {after} are there; must be {min(count, len(self._known) - after)}")

    def _check_arrivals(self) -> None:
        arrived = self.service.arrived
        writes = Counter(arrival.path for arrival in arrived if arrival.method == "PUT")
        self._read_events()  # after: what had arrived by then must be on file now
        for arrival in arrived[self._checked :]:
            if arrival.method == "PUT":
                intent = self._intents.get(arrival.path)
                if intent is None or intent > arrival.time:
                    self.findings.without_intent.append(f"{arrival.path} arrived at {arrival.time}; its intent was on file at {intent}")
        self._checked = len(arrived)
        for path, count in writes.items():
            if count > (self._redeemed[path.rsplit("/", 1)[1]] if path.startswith("/v1/production/") else 1):
                self.findings.forwarded_twice.append(f"{path} arrived {count} times")

    def _check_export(self) -> None:
        """Whole and offline; its leaves are the events that were seen."""
        key = self.installed.api.text("/v1/record/key").strip()
        with tempfile.NamedTemporaryFile(suffix=".bailiwick") as file:
            self.installed.api.download("/v1/record/export", file)
            file.flush()
            verified = verify_export(Path(file.name), key)
            file.seek(0)
            leaves = [json.loads(line)["leaf"] for line in file if b'"leaf":' in line]
        if verified.events < len(self._known):
            self.findings.acknowledged_lost.append(f"the export holds {verified.events} events; {len(self._known)} were seen")
        for leaf in leaves:
            known = self._known.get(leaf["seq"])
            shown = {"sequence": leaf["seq"], "received": leaf["received"], "writer": leaf["writer"], "event": leaf["event"]}
            if known is not None and known != _digest(shown):
                self.findings.acknowledged_lost.append(f"leaf {leaf['seq']} is not the event that was seen")


@contextmanager
def trial(*, seed: int, runs: int, prepare: Callable[[Installation], None] = lambda _: None) -> Iterator[Trial]:
    """`prepare` is given the installation before it is started."""
    token = secrets.token_urlsafe(32)
    with load.CountingService(token) as service:
        configuration = load.configuration(service, operator=os.getuid())
        installed = Installation(configuration, files=load.files(service), environment={load.VARIABLE: token}, workers=2)
        prepare(installed)
        with installed:
            yield Trial(installed, service, random.Random(seed), runs)


def summary(trial: Trial, seed: int, seconds: float) -> dict[str, Any]:
    recovered = {name: {"p50": round(statistics.median(times), 2), "max": round(max(times), 2)} for name, times in sorted(trial.recovered.items())}
    counts = {name: len(found) for name, found in trial.findings.all().items()}
    return {
        "kills": dict(sorted(trial.kills.items())),
        **counts,
        "runs": len(trial.runs),
        "events": len(trial._known),
        "writes": sum(trial.service.writes().values()),
        "whole_again_s": recovered,
        "seed": seed,
        "seconds": round(seconds, 1),
    }


def _digest(recorded: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.kills", description="kill -9 of every process at random moments under load")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3, help="runs alive at a time")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(2**32)
    begun = time.monotonic()
    with trial(seed=seed, runs=chosen.runs) as tried:
        for number in range(chosen.rounds):
            tried.round()
            if any(tried.findings.all().values()):
                break
            print(f"\rround {number + 1} of {chosen.rounds}, {time.monotonic() - begun:.0f} s", end="", file=sys.stderr, flush=True)
        tried.conclude()
    print(file=sys.stderr)
    for name, found in tried.findings.all().items():
        for sentence in found[:20]:
            print(f"{name}: {sentence}", file=sys.stderr)
    print(json.dumps(summary(tried, seed, time.monotonic() - begun)))
    return 1 if any(tried.findings.all().values()) else 0


if __name__ == "__main__":
    sys.exit(main())
