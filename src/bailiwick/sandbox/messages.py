"""What the governor says to the launcher, the only process it listens to, and what the launcher tells back. `kernel.channel.Heartbeat` is told too:
without it every run is frozen until it is heard again."""

import msgspec

from bailiwick.kernel.channel import Message, Service
from bailiwick.sandbox.spec import SandboxSpec

COLLECT_SECONDS_MAX = 120.0  # who asks waits longer than who works, so that nothing is written that nobody hears of


class CreateSandbox(Message, frozen=True):
    """Make the sealed place: namespace, listeners (handed to `worker` as `sandbox.adoption.AdoptRun`), workspace copy, cgroup, probe. Answered
    by SandboxCreated when everything but the agent is there; on any failure nothing is left."""

    run: str
    worker: str
    spec: SandboxSpec


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing the probe tried inside: `held` is whether the isolation did what it must."""

    check: str
    held: bool
    detail: str


class SandboxCreated(Message, frozen=True):
    backend: str
    findings: list[Finding]
    capabilities: dict[str, str]
    workspace_files: int


class StartAgent(Message, frozen=True):
    """Start the command in the sandbox created before."""

    run: str


class AgentStarted(Message, frozen=True):
    pid: int


class HandOver(Message, frozen=True):
    """Give the run's listeners to this worker (again): it was started anew, or another takes its place."""

    run: str
    worker: str


class FreezeRun(Message, frozen=True):
    """Stop every process of the run where it is, and read back that they stopped."""

    run: str


class ThawRun(Message, frozen=True):
    run: str


class KillRun(Message, frozen=True):
    """SIGKILL every process of the run and wait until none is left."""

    run: str
    reason: str


class DestroySandbox(Message, frozen=True):
    """Take away whatever is left: processes, cgroup, namespace, mounts, listeners, workspace (once collected). Destroying what is gone is done."""

    run: str


class CollectWorkspace(Message, frozen=True):
    """After the agent ended: what changed against the copy taken at the start. Answered by WorkspaceCollected within COLLECT_SECONDS_MAX, or failed."""

    run: str


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str  # relative; bytes that are not UTF-8 as \\xNN
    change: str  # added, modified, deleted, mode
    size: int
    sha256: str


class WorkspaceCollected(Message, frozen=True):
    """`archive` is a tar of the added and modified files, readable by the governor, to be removed by it; empty when nothing changed."""

    changes: list[Change]
    archive: str
    refused: list[str]  # what the run left that is never brought back: devices, sockets, links that lead out; with the reason


class RunStats(Message, frozen=True):
    """Answer to MeasureRun."""

    cpu_seconds: float
    memory_bytes: int
    memory_bytes_max: int
    pids: int
    disk_bytes: int


class MeasureRun(Message, frozen=True):
    run: str


class AgentExited(Message, frozen=True):
    """Told to the governor. `status` is the exit status, or minus the signal; `cause` is `exited`, `killed`, `memory`, `pids`, `disk`, or `sandbox`
    when the sandbox broke and the agent is not to blame, in which case `detail` says how."""

    run: str
    status: int
    cause: str
    detail: str
    stats: RunStats


class ListSandboxes(Message, frozen=True):
    """What the launcher holds: a governor that was started anew asks this first."""


class SandboxState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run: str
    state: str  # created, running, frozen, exited
    exited: AgentExited | None = None


class SandboxesListed(Message, frozen=True):
    sandboxes: list[SandboxState]


LAUNCHER = Service(
    "launcher",
    1,
    [
        CreateSandbox, SandboxCreated, StartAgent, AgentStarted, HandOver, FreezeRun, ThawRun, KillRun, DestroySandbox, CollectWorkspace,
        WorkspaceCollected, RunStats, MeasureRun, ListSandboxes, SandboxesListed, AgentExited,
    ],
)  # fmt: skip
