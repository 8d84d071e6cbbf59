"""What a sandbox backend offers the launcher, and what each failure means. One conformance suite holds every backend, and the fake, to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bailiwick.sandbox.changes import Collected
from bailiwick.sandbox.messages import Finding, RunStats
from bailiwick.sandbox.spec import SandboxSpec


@dataclass(frozen=True, slots=True)
class Exit:
    """How the agent ended; the fields are those of `messages.AgentExited`."""

    status: int
    cause: str
    detail: str


class Box(Protocol):
    """One sandbox, made and examined; its process waits to become the agent."""

    @property
    def findings(self) -> list[Finding]: ...

    @property
    def workspace_files(self) -> int: ...

    @property
    def descriptors(self) -> Mapping[str, int]:
        """By the names of `adoption.AdoptRun`; the box's own, open until `destroy`."""
        ...

    async def start(self) -> int:
        """Lets the agent begin; its pid on this machine. BackendError when what waited inside is dead."""
        ...

    async def wait(self) -> Exit:
        """Returns once no process of the sandbox is left. One caller at a time."""
        ...

    async def freeze(self) -> None:
        """Returns once every process stands still, read back. BackendError when one does not within limits.STOP_SECONDS_MAX."""
        ...

    async def thaw(self) -> None: ...

    async def kill(self, cause: str, reason: str) -> None:
        """SIGKILL to every process, frozen or not, and waits until none is left. The first cause and reason given are what `wait` says. Killing
        what is dead is done. BackendError when one outlives limits.STOP_SECONDS_MAX."""
        ...

    def measure(self) -> RunStats: ...

    async def collect(self, target: int) -> Collected:
        """After the end: what changed in the workspace, and a tar of it into the file `target`. BackendError when it cannot be read or written."""
        ...

    async def destroy(self) -> None:
        """Kills what lives and takes everything away: groups, mounts, descriptors. May be called again."""
        ...


class Backend(Protocol):
    name: str

    def capabilities(self) -> dict[str, str]:
        """What is enforced, and by what; a limit that is not enforced says so in its value, which begins with `not enforced`."""
        ...

    async def create(self, run: str, spec: SandboxSpec) -> Box:
        """CallerError for what cannot be had as asked (a limit that cannot be enforced, a command that is not there), BackendError for what broke;
        nothing is left of either."""
        ...

    def clean(self) -> int:
        """Takes away what a launcher of this installation that was killed left behind; how many sandboxes that were."""
        ...

    def close(self) -> None:
        """The last word, when every box is destroyed: nothing of this installation is left on the machine."""
        ...
