"""A process that is silent, or a disk that is full: what it answers for is refused, naming it, nobody runs on ungoverned, and all goes on by itself after."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.installation import Installation
from tests.e2e.kills import Trial, trial

from bailiwick.cli.demo.remains import processes_of
from bailiwick.kernel import limits
from bailiwick.record.client import GRACE_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(180)]

SCHEDULING_SECONDS = 1.0  # two cores, everything busy
STATE_BYTES = 48 * limits.MIB


@contextlib.contextmanager
def loaded(prepare: Callable[[Installation], None] = lambda _: None) -> Iterator[Trial]:
    with trial(seed=1, runs=2, prepare=prepare) as tried:
        tried.begin()
        yield tried
        tried.progress("at the end")
        tried.conclude()
        assert {name: found for name, found in tried.findings.all().items() if found} == {}


@contextlib.contextmanager
def silent(tried: Trial, *names: str) -> Iterator[float]:
    """The processes stopped where they are; gives the time at which they were."""
    pids = [tried.installed.pids()[name] for name in names]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def quiet_since(tried: Trial, methods: tuple[str, ...], seconds: float, seconds_max: float) -> float:
    """Waits until nothing of these methods has arrived for `seconds`; the time of the last that did."""

    def count() -> int:
        return sum(arrival.method in methods for arrival in tried.service.arrived)

    before, since = count(), time.monotonic()
    until = since + seconds_max
    while time.monotonic() - since < seconds:
        assert time.monotonic() < until, f"{methods} still arrive after {seconds_max} s"
        time.sleep(0.01)
        if (now := count()) != before:
            before, since = now, time.monotonic()
    return since


def said(tried: Trial, run: str) -> str:
    return "".join(event["body"]["text"] for event in tried.installed.events(run) if event["kind"] == "run.output")


def stands_still(run: str) -> bool:
    """Every process of the run is frozen, by its control group or by SIGSTOP."""
    pids = processes_of([run])
    return bool(pids) and all(_stands_still(pid) for pid in pids)


def _stands_still(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if state in "Tt":
        return True
    path = next((line.partition("::")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")), "")
    found = [root / path.lstrip("/") / "cgroup.events" for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))]
    return any("frozen 1" in file.read_text() for file in found if file.exists())


def test_runs_stand_still_while_the_governor_is_silent_and_go_on_after() -> None:
    """No heartbeat: the launcher freezes every run within HEARTBEAT_STALE_SECONDS, nothing arrives anywhere, and with the first heartbeat all goes on."""
    with loaded() as tried:
        with silent(tried, "governor") as stopped:
            for run in tried.live:
                tried.installed.wait(lambda run=run: stands_still(run), f"{run} standing still", 10.0)  # type: ignore[misc]
            assert time.monotonic() - stopped < limits.HEARTBEAT_STALE_SECONDS + SCHEDULING_SECONDS
            assert quiet_since(tried, ("PUT", "GET"), 1.0, 5.0) - stopped < limits.HEARTBEAT_STALE_SECONDS + SCHEDULING_SECONDS
        tried.progress("after the governor was heard again")
        tried.check()


def test_the_gateway_denies_while_the_governor_is_silent_even_if_nobody_freezes() -> None:
    """With the launcher silent as well the agent runs on: the gateway refuses it, effects and reads, and names the governor."""
    with loaded() as tried:
        with silent(tried, "governor", "launcher") as stopped:
            last = quiet_since(tried, ("PUT", "GET"), 1.0, 10.0)
            assert last - stopped < limits.HEARTBEAT_STALE_SECONDS + SCHEDULING_SECONDS
        tried.progress("after the governor was heard again")
        for run in tried.live:
            for method in ("PUT", "GET"):
                tried.installed.wait(lambda run=run, method=method: f"{method} 503 the governor has not been heard from" in said(tried, run), "the reason")  # type: ignore[misc]


def test_nothing_is_forwarded_without_a_record() -> None:
    """The recorder is silent: no effect arrives from that moment, no read once it is known, and both are refused naming it."""
    with loaded() as tried:
        with silent(tried, "recorder") as stopped:
            assert quiet_since(tried, ("PUT",), 1.0, 10.0) - stopped < SCHEDULING_SECONDS
            assert quiet_since(tried, ("PUT", "GET"), limits.CALL_SECONDS_MAX, 20.0) - stopped < GRACE_SECONDS + SCHEDULING_SECONDS
        tried.progress("after the recorder took events again")
        tried.check()
        for run in tried.live:
            tried.installed.wait(lambda run=run: "GET 503 the recorder does not take events" in said(tried, run), "the reason for a read")  # type: ignore[misc]
            tried.installed.wait(lambda run=run: "PUT 503 the recorder " in said(tried, run), "the reason for a write")  # type: ignore[misc]


def test_a_leased_host_is_refused_while_the_broker_is_silent() -> None:
    """What a worker was lent it may keep for seconds; then nothing goes to a host that needs a credential, and the broker is named."""
    with loaded() as tried:
        with silent(tried, "broker"):
            quiet_since(tried, ("PUT", "GET"), limits.CALL_SECONDS_MAX + SCHEDULING_SECONDS, 60.0)  # for so long the workers wait for the broker
        tried.progress("after the broker answered again")
        assert tried.service.unauthorised == 0
        for run in tried.live:
            tried.installed.wait(lambda run=run: "503 the broker lends nothing for this host" in said(tried, run), "the reason")  # type: ignore[misc]


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give the state directory a small file system of its own")
def test_a_full_disk_refuses_effects_writes_nothing_by_half_and_is_survived() -> None:
    """No space for the record: no effect arrives, the recorder is named, every process lives or comes back, and with space all goes on."""
    state: list[Path] = []

    def small(installed: Installation) -> None:
        state.append(installed.layout.root)
        state[0].mkdir(mode=0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_BYTES},mode=755", "tmpfs", str(state[0])], check=True)

    try:
        with loaded(small) as tried:
            filler = state[0] / "filler"
            _fill(filler)
            assert quiet_since(tried, ("PUT",), 2.0, 30.0)
            assert quiet_since(tried, ("GET",), 2.0, 30.0)
            tried.installed.kill("gateway-0")
            tried.installed.kill("recorder")
            quiet_since(tried, ("PUT", "GET"), 3.0, 30.0)
            filler.unlink()
            tried.progress("after there was space again")
            tried.check()
            for run in tried.live:
                tried.installed.wait(lambda run=run: "503 the recorder " in said(tried, run), "the reason")  # type: ignore[misc]
    finally:
        subprocess.run(["umount", "-l", str(state[0])], check=False)
        shutil.rmtree(state[0].parent, ignore_errors=True)


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), b"\0" * size)
