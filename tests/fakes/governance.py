"""A governor in memory: the same verbs, the same errors, events that a test commits. What it cannot do (a sandbox, a record on disk) it plays."""

import io
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bailiwick.governor.views import ChangesView, HoldView, Operator, ProcessView, RecordedEvent, RunRequest, RunView, StatusView
from bailiwick.kernel.errors import Conflict, Forbidden, NotFound
from bailiwick.kernel.ids import HoldId, RunId, new_hold_id, new_run_id

TIME = "2026-11-24T02:00:00.000000Z"
KEY = "bailiwick.test+0f0e0d0c+AZ9QZ8sYkQ0Yt7m3m2cYw0l7s0H4y1bq0c3m1V2k9h8g"


@dataclass
class FakeGovernance:
    names: list[str] = field(default_factory=lambda: ["deployer"])
    log: list[RecordedEvent] = field(default_factory=list)
    known_runs: dict[str, RunView] = field(default_factory=dict)
    known_holds: dict[str, HoldView] = field(default_factory=dict)
    known_changes: dict[str, ChangesView] = field(default_factory=dict)
    archives: dict[str, Path] = field(default_factory=dict)
    requests: list[tuple[RunRequest, Operator]] = field(default_factory=list)
    exports: list[Path] = field(default_factory=list)
    stopped_by: str | None = None
    on_request: Any = None  # called with the new run, to play what it does
    end_on_kill: bool = True
    _news: anyio.Event | None = None

    # What a test does.

    def commit(self, kind: str, *, run: str | None = None, **fields: Any) -> RecordedEvent:
        event: dict[str, Any] = {"id": f"e.{len(self.log):x}", "kind": kind, "time": fields.pop("time", TIME), "v": 1}
        if run is not None:
            event |= {"run": run, "agent": self.known_runs[run].agent if run in self.known_runs else "deployer"}
        event |= fields
        recorded = RecordedEvent(sequence=len(self.log), received=event["time"], writer="governor", event=event)
        self.log.append(recorded)
        if self._news is not None:
            self._news.set()
            self._news = None
        return recorded

    def change(self, run: str, **fields: Any) -> RunView:
        self.known_runs[run] = msgspec.structs.replace(self.known_runs[run], **fields)
        return self.known_runs[run]

    def end(self, run: str, *, cause: str = "exited", status: int | None = 0, detail: str = "") -> None:
        if self.known_runs[run].state == "ended":
            return
        self.change(run, state="ended", ended=TIME, cause=cause, status=status, detail=detail)
        self.commit("run.ended", run=run, body={"cause": cause, "status": status, "detail": detail, "used": {"calls": 1, "writes": 0}})

    def open_hold(self, run: str, **fields: Any) -> HoldView:
        shown = {
            "verb": "write",
            "resource": {"scheme": "https", "host": "config.internal", "port": 443, "method": "PUT", "path": "/v1/production/flags", "query": ""},
            "arguments": {},
            "fields": [
                {"name": "authorization", "sha256": "ab" * 32, "size": 9},
                {"name": "content-type", "value": "application/json"},
                {"name": "x-amz-target", "value": "DynamoDB.DeleteTable"},
            ],
            "body": {"sha256": "ab" * 32, "size": 17, "content_type": "application/json"},
        }
        defaults: dict[str, Any] = {
            "hold": new_hold_id(), "run": run, "agent": "deployer", "state": "pending", "opened": TIME, "expires": "2026-11-24T04:00:00.000000Z",
            "digest": "sha256:" + "cd" * 32, "shown": shown, "body_text": '{"rollout": 100}', "rules": ["deployer.boundary[2]"],
            "approvers": ["oncall"], "quorum": 1, "four_eyes": False,
        }  # fmt: skip
        view = HoldView(**(defaults | fields))
        self.known_holds[view.hold] = view
        self.commit("hold.opened", run=run, verb="write", resource="https://config.internal/v1/production/flags", body={"hold": view.hold})
        return view

    # Governance.

    def agents(self) -> list[str]:
        return list(self.names)

    def status(self) -> StatusView:
        processes = [
            ProcessView(name="launcher", state="up", pid=4, uid=0, restarts=0),
            ProcessView(name="gateway-0", state="up", pid=5, uid=761004, restarts=1),
        ]
        live = sum(run.state != "ended" for run in self.known_runs.values())
        pending = sum(hold.state == "pending" for hold in self.known_holds.values())
        return StatusView(
            version="0.1.0", started=TIME, state_directory="/state", configuration="/etc/bailiwick.yaml", processes=processes,
            runs_live=live, holds_pending=pending, record_size=len(self.log), record_root="ef" * 32,
        )  # fmt: skip

    async def request_run(self, request: RunRequest, operator: Operator) -> RunView:
        if request.agent is not None and request.agent not in self.names:
            raise NotFound(f"agent {request.agent!r} is not in the configuration; known: {', '.join(self.names)}")
        self.requests.append((request, operator))
        view = RunView(
            run=new_run_id(), agent=request.agent or "command", task=request.task, state="running", operator=operator.name,
            observe=request.observe, requested=TIME, started=TIME, worker="gateway-0",
        )  # fmt: skip
        self.known_runs[view.run] = view
        self.commit("run.requested", run=view.run, body={"task": request.task})
        if self.on_request is not None:
            self.on_request(view)
        return view

    def runs(self, *, state: str | None, agent: str | None, limit: int) -> list[RunView]:
        found = [run for run in self.known_runs.values() if state in (None, run.state) and agent in (None, run.agent)]
        return sorted(found, key=lambda run: run.run, reverse=True)[:limit]

    def run(self, run: RunId) -> RunView:
        if run not in self.known_runs:
            raise NotFound(f"run {run!r} is unknown; `bailiwick ps --all` lists those there are")
        return self.known_runs[run]

    async def kill_run(self, run: RunId, operator: Operator, reason: str) -> RunView:
        if self.run(run).state == "ended":
            raise Conflict(f"run {run} is ended already")
        self.commit("run.killed", run=run, body={"operator": operator.name, "cause": "killed", "detail": reason})
        if self.end_on_kill:
            self.end(run, cause="killed", status=None, detail=reason)
        return self.known_runs[run]

    async def pause_run(self, run: RunId, operator: Operator, reason: str) -> RunView:
        return self._move(run, "running", "paused", "run.paused", operator)

    async def resume_run(self, run: RunId, operator: Operator, reason: str) -> RunView:
        return self._move(run, "paused", "running", "run.resumed", operator)

    def _move(self, run: RunId, source: str, target: str, kind: str, operator: Operator) -> RunView:
        if self.run(run).state != source:
            raise Conflict(f"run {run} is {self.run(run).state}; only a run that is {source} can be {target}")
        self.commit(kind, run=run, body={"operator": operator.name})
        return self.change(run, state=target)

    def holds(self, *, state: str | None) -> list[HoldView]:
        return [hold for hold in self.known_holds.values() if state in (None, hold.state)]

    def hold(self, hold: HoldId) -> HoldView:
        if hold not in self.known_holds:
            raise NotFound(f"hold {hold!r} is unknown; `bailiwick holds` lists those that wait")
        return self.known_holds[hold]

    async def settle_hold(self, hold: HoldId, operator: Operator, *, granted: bool, why: str) -> HoldView:
        view = self.hold(hold)
        if view.state != "pending" and (granted or view.state != "granted"):
            raise Conflict(f"hold {hold} is {view.state}; only a pending one can be settled")
        if operator.name == "stranger":
            raise Forbidden("operator 'stranger' is in none of the approver groups oncall")
        outcome = "granted" if granted else "denied"
        self.commit("hold.signed", run=view.run, body={"hold": hold, "operator": operator.name, "outcome": outcome, "why": why})
        signed = [*view.signed, {"operator": operator.name, "outcome": outcome, "why": why, "time": TIME}]
        self.known_holds[hold] = msgspec.structs.replace(view, state=outcome, signed=signed, reason=why)
        return self.known_holds[hold]

    def events(self, *, run: RunId | None, after: int, limit: int, kinds: Sequence[str] | None = None) -> list[RecordedEvent]:
        found = [
            event for event in self.log[max(0, after + 1) :]
            if (run is None or event.event.get("run") == run) and (kinds is None or event.event["kind"] in kinds)
        ]  # fmt: skip
        return found[:limit]

    async def wait_events(self, after: int, seconds_max: float) -> int:
        with anyio.move_on_after(seconds_max):
            while len(self.log) - 1 <= after:
                self._news = self._news or anyio.Event()
                await self._news.wait()
        return len(self.log) - 1

    def changes(self, run: RunId) -> ChangesView:
        self.run(run)
        return self.known_changes.get(run, ChangesView(run=run, workspace=None, changes=[], refused=[]))

    def changes_archive(self, run: RunId) -> Path | None:
        self.run(run)
        return self.archives.get(run)

    async def mark_applied(self, run: RunId, operator: Operator, directory: str) -> None:
        view = self.changes(run)
        if view.applied:
            raise Conflict(f"changes of {run} are applied already, to {view.applied}")
        self.known_changes[run] = msgspec.structs.replace(view, applied=directory)
        self.commit("run.applied", run=run, body={"operator": operator.name, "directory": directory})

    async def export(self, run: RunId | None) -> Path:
        if run is not None:
            self.run(run)
        with tempfile.NamedTemporaryFile(prefix="bailiwick-fake-", suffix=".export", delete=False) as made:
            made.write(b"export\n" * 1000)
        self.exports.append(Path(made.name))
        return self.exports[-1]

    def record_key(self) -> str:
        return KEY

    def policy(self, agent: str) -> str:
        if agent not in self.names:
            raise NotFound(f"agent {agent!r} is not in the configuration; known: {', '.join(self.names)}")
        return 'permit (principal, action == Action::"read", resource);\n'

    async def shutdown(self, operator: Operator) -> None:
        self.stopped_by = operator.name


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(content))
    return path
