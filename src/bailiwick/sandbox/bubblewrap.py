"""The bubblewrap backend: a sandbox is a cradle that becomes bubblewrap, a starter inside that becomes the agent, and what the launcher holds of both.

Order of `create`: (1) refuse what cannot be enforced; (2) the run's control groups; (3) the cradle, born into them; (4) its sockets
and disk arrive; (5) bubblewrap lays the sandbox out and the starter says it is there; (6) the probe; (7) what the probe dialled has arrived here.
Whatever fails, `Box.destroy` undoes all of it.
"""

import contextlib
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio

from bailiwick.kernel import accounts, limits, seccomp
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.sandbox import arguments, cradle, probe, surroundings
from bailiwick.sandbox.box import BubblewrapBox
from bailiwick.sandbox.cgroup import FREEZE, KILL, Cgroups
from bailiwick.sandbox.examination import Examination
from bailiwick.sandbox.messages import Finding
from bailiwick.sandbox.spec import SandboxSpec

CREATE_SECONDS_MAX = 120.0  # a large workspace is copied within it

_LIMIT_CONTROLS = {"cpu": "cpu", "memory_bytes": "memory", "pids": "pids"}


@dataclass(slots=True)
class Bubblewrap:
    """`directory` is the launcher's own; `installation` names the control groups. Made once a launcher, before it serves."""

    directory: Path
    state: Path
    separate: bool
    cgroups: Cgroups
    program: str
    filter: bytes
    live: set[int]
    name: str = "bubblewrap"
    _last: int = 0

    @classmethod
    def find(cls, directory: Path, state: Path, *, installation: str) -> "Bubblewrap":
        """BackendError when bubblewrap, or a filter for this architecture, is not to be had."""
        program = arguments.find_bubblewrap()
        arguments.version(program)
        separate = os.getuid() == 0
        return cls(directory, state, separate, Cgroups.find(f"bailiwick-{installation}"), program, seccomp.agent_filter(), set())

    def capabilities(self) -> dict[str, str]:
        enforced = self.cgroups.enforces
        sampled = "by sampling every half second"
        return {
            "cpu": enforced.get("cpu", "not enforced: no control group may be written"),
            "memory_bytes": f"{enforced['memory']}, workspace included; memory alone {sampled}"
            if "memory" in enforced
            else f"not enforced by the kernel, {sampled}",
            "pids": enforced.get("pids", "rlimit on the sandbox's own user"),
            "open_files": "rlimit",
            "disk_bytes": "size of the sandbox's own tmpfs, which is all it can write to",
            "freeze": enforced.get(FREEZE, "SIGSTOP to every process, read back"),
            "kill": enforced.get(KILL, "end of the sandbox's process namespace"),
            "uid": "one for each run" if self.separate else "the launcher's, in a user namespace of each run's own",
            "probe": "inside every sandbox, before the agent",
        }

    async def create(self, run: str, spec: SandboxSpec) -> BubblewrapBox:
        self._refuse_unenforceable(spec)  # (1)
        etc = surroundings.prepare(self.directory, spec.trust_bundle)
        number, uid, gid = self._identity()
        group = self.cgroups.make(run, spec.limits, memory_bytes=spec.limits.memory_bytes + spec.limits.disk_bytes)  # (2)
        box = BubblewrapBox(run=run, limits=spec.limits, uid=uid, gid=gid, separate=self.separate, group=group, release=lambda: self.live.discard(number))
        try:
            with anyio.fail_after(CREATE_SECONDS_MAX):
                await self._build(box, self._plan(spec, str(etc), uid, gid), spec)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await box.destroy()
            if isinstance(error, TimeoutError):
                raise BackendError(f"sandbox was not made within {CREATE_SECONDS_MAX:g} s; the workspace may be too large or the machine too busy") from error
            raise
        return box

    def clean(self) -> int:
        """Processes of a killed launcher died with it, and their namespaces and mounts with them; groups and directories are left."""
        left = self.cgroups.leftovers()
        for group in left:
            group.kill()
        self._forget_bases()
        deadline = time.monotonic() + limits.STOP_SECONDS_MAX
        still = left
        while (still := [group for group in still if not group.remove()]) and time.monotonic() < deadline:
            time.sleep(0.005)  # nothing is served yet; a killed process takes the kernel a moment
        return len(left)

    def close(self) -> None:
        self._forget_bases()
        self.cgroups.close()

    def _forget_bases(self) -> None:
        for stale in self.directory.glob("etc-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def _refuse_unenforceable(self, spec: SandboxSpec) -> None:
        for limit in sorted(spec.limits.required):
            control = _LIMIT_CONTROLS.get(limit)
            if control in ("cpu", "memory") and control not in self.cgroups.enforces:
                raise CallerError(
                    f"limits.{limit}: cannot be enforced here, as no control group with {control} may be written; run the launcher as root or in a unit "
                    "with Delegate=yes, or leave the limit out of the configuration"
                )

    def _identity(self) -> tuple[int, int, int]:
        """A number that no live run has, and its uid and gid. Numbers go round, so that one just freed is not the next."""
        for _ in range(accounts.RUN_UIDS):
            self._last = (self._last + 1) % accounts.RUN_UIDS  # not more: `run_uid` goes round there, and two live runs would be one user
            uid = Accounts.run_uid(self._last) if self.separate else os.getuid()
            if self._last not in self.live:
                self.live.add(self._last)
                return self._last, uid, uid if self.separate else os.getgid()
        raise BackendError("every run uid is in use; end some runs first")

    def _plan(self, spec: SandboxSpec, etc: str, uid: int, gid: int) -> cradle.Plan:
        bounds = {
            resource.RLIMIT_NOFILE: spec.limits.open_files,
            resource.RLIMIT_CORE: 0,
            # A hole costs no block, so the tmpfs does not bound it. One page above the disk: what is full says ENOSPC, and no signal comes first.
            resource.RLIMIT_FSIZE: spec.limits.disk_bytes + resource.getpagesize(),
            resource.RLIMIT_NPROC: spec.limits.pids + 2,
            resource.RLIMIT_MEMLOCK: 64 * limits.KIB,
        }
        if "memory" not in self.cgroups.enforces:
            bounds[resource.RLIMIT_DATA] = spec.limits.memory_bytes
        return cradle.Plan(
            uid=uid, gid=gid, separate=self.separate, ports=spec.ports, disk_bytes=spec.limits.disk_bytes,
            workspace=spec.workspace, trees=spec.trees, state=self.state, etc=etc,
            command=arguments.command(self.program, spec), options=arguments.options(self.program, spec), seccomp=self.filter, rlimits=bounds,
        )  # fmt: skip

    async def _build(self, box: BubblewrapBox, plan: cradle.Plan, spec: SandboxSpec) -> None:
        groups = [f"/{path.parent.name}/{path.name}" for path in box.group.paths.values()]
        expected = probe.Expected(
            uid=plan.uid, open_files=spec.limits.open_files, disk_bytes=spec.limits.disk_bytes, state=str(self.state), command=spec.command[0],
            path=surroundings.environment(spec.environment)["PATH"], groups=groups, trees=spec.trees,
        )  # fmt: skip
        box.spawn(plan)  # (3)
        await box.take_sockets()  # (4)
        await box.take_workspace()
        box.examination = Examination.prepare(expected, separate=self.separate)  # meanwhile bubblewrap works
        await box.wait_ready()  # (5)
        result, outside = await box.examine(expected)  # (6)
        if result.missing:
            raise CallerError(result.missing)
        box.findings.extend(result.findings + outside + list(_arrived(box)))  # (7)


def _arrived(box: BubblewrapBox) -> Iterator[Finding]:
    """What the probe dialled must be waiting at our listeners, under the address it dialled; and the tap must have heard what it tried elsewhere."""
    for name, (address, port) in (("ipv4", probe.DIALLED4), ("ipv6", probe.DIALLED6)):
        shown = f"::ffff:{address}" if name == "ipv4" else address
        with socket.socket(fileno=os.dup(box.descriptors[f"tcp:{port}"])) as listener:
            try:
                accepted, _ = listener.accept()
                with accepted:
                    dialled = accepted.getsockname()[:2]
                yield Finding(f"listener.{name}", dialled == (shown, port), f"a connection to {dialled[0]} port {dialled[1]} arrived")
            except OSError as error:
                yield Finding(f"listener.{name}", False, f"nothing arrived: {error.strerror}")
    heard = 0
    with socket.socket(fileno=os.dup(box.descriptors["tap"])) as tap, contextlib.suppress(BlockingIOError):
        while tap.recv(256):
            heard += 1
    yield Finding("listener.tap", heard > 0, f"{heard} attempts on ports nobody serves were heard")


def raise_descriptor_limit() -> None:
    """A run is some twenty descriptors of ours."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
