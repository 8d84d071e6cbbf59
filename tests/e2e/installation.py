"""The product itself for end-to-end tests: an installation of the test's own, started, asked and stopped by the product's own commands.

with Installation(configuration, files={"agent/main.py": "..."}) as installed:
    done = installed.run("agent", "the task")
    assert done.status == 0
    assert [event["kind"] for event in done.events][-1] == "run.ended"
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bailiwick.cli.client import Client
from bailiwick.cli.demo.remains import remains
from bailiwick.governor.views import HoldView, RunView
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.layout import Layout

DEADLINE_SECONDS = 30.0
ROOT = Path(__file__).parents[2]
TREES = [str(Path(prefix).resolve()) for prefix in dict.fromkeys((sys.prefix, sys.base_prefix)) if not Path(prefix).resolve().is_relative_to("/usr")]


@dataclass(frozen=True, slots=True)
class Done:
    """A run that is over."""

    view: RunView
    status: int  # of the command line
    output: str  # of the command line
    events: list[dict[str, Any]] = field(repr=False)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def said(self) -> str:
        """What the agent wrote, from the record."""
        return "".join(event["body"].get("text", "") for event in self.of("run.output"))


class Installation:
    """A context manager. Its directory is readable by the accounts of our processes, as a real one is; it is gone afterwards."""

    def __init__(
        self,
        configuration: str = "{}\n",
        *,
        files: Mapping[str, str | bytes] | None = None,
        environment: Mapping[str, str] | None = None,
        workers: int = 1,
    ) -> None:
        self._whole = Path(tempfile.mkdtemp(prefix="bw-", dir="/tmp"))
        self._whole.chmod(0o755)
        self.directory = self._whole / "work"  # of the configuration, and where commands are given
        self.directory.mkdir()
        self.layout = Layout(self._whole / "s")
        self.api = Client(self.layout)
        self._environment = {**os.environ, **(environment or {})}
        self._workers = workers
        self.write("bailiwick.yaml", configuration)
        for name, content in (files or {}).items():
            self.write(name, content)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def __enter__(self) -> "Installation":
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self._whole, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._whole, ignore_errors=True)

    def start(self) -> None:
        self.cli("up", "--detach", "--config", str(self.directory / "bailiwick.yaml"), "--workers", str(self._workers), check=True)

    def stop(self) -> None:
        if (self.layout.sockets / "processes.json").exists():
            self.cli("down", check=True, seconds_max=60.0)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "bailiwick.cli", *words]

    def cli(self, *words: str, check: bool = False, seconds_max: float = DEADLINE_SECONDS) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words),
            cwd=self.directory,
            env=self._environment | {"BAILIWICK_STATE": str(self.layout.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds_max,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def run(self, *words: str, approve: bool | None = None, seconds_max: float = 100.0) -> Done:
        """`bailiwick run WORDS` to its end. `approve` answers every hold, as another person would, in another process."""
        with self._approver(approve) if approve is not None else _nobody():
            done = self.cli("run", *words, seconds_max=seconds_max)
        found = self.api.get("/v1/runs", list[RunView], limit=1)
        if not found:
            raise AssertionError(f"no run was made:\n{done.stdout}{done.stderr}\n{self.logs()}")
        return Done(found[0], done.returncode, done.stdout + done.stderr, self.events(found[0].run))

    def begin(self, *words: str) -> str:
        """`bailiwick run --detach WORDS`: the run's id."""
        return self.cli("run", "--detach", *words, check=True).stdout.strip()

    def view(self, run: str) -> RunView:
        return self.api.get(f"/v1/runs/{run}", RunView)

    def wait_ended(self, run: str, seconds_max: float = DEADLINE_SECONDS) -> Done:
        self.wait(lambda: self.view(run).state == "ended", f"the end of {run}", seconds_max)
        return Done(self.view(run), 0, "", self.events(run))

    def events(self, run: str | None = None) -> list[dict[str, Any]]:
        path = f"/v1/runs/{run}/events" if run else "/v1/events"
        return [recorded["event"] for recorded in self.api.lines(path)]

    def pids(self) -> dict[str, int]:
        listed = json.loads((self.layout.sockets / "processes.json").read_text())
        return {entry["name"]: entry["pid"] for entry in listed if entry["pid"]}

    def kill(self, name: str) -> int:
        """kill -9 of a process of ours; returns its pid."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_whole(self, seconds_max: float = DEADLINE_SECONDS) -> None:
        """Until every process is up again."""

        def whole() -> bool:
            listed = json.loads(self.cli("status", "--json").stdout or "{}")
            return bool(listed) and all(process["state"] == "up" for process in listed["processes"])

        self.wait(whole, "every process up", seconds_max)

    def wait(self, condition: Callable[[], Any], what: str, seconds_max: float = DEADLINE_SECONDS) -> Any:
        deadline = time.monotonic() + seconds_max
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except (BailiwickError, OSError, ValueError, LookupError):
                pass
            time.sleep(0.02)
        raise AssertionError(f"{what} did not come within {seconds_max:g} s\n{self.logs()}")

    def left(self, *runs: str) -> list[str]:
        """What is left of these runs on this machine."""
        return remains(runs, sandboxes=self.layout.sandboxes)

    def logs(self) -> str:
        found = [*sorted(self.layout.logs.glob("*.log")), self.layout.root / "up.log"]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found if path.exists() and path.stat().st_size)

    @contextmanager
    def _approver(self, granted: bool) -> Iterator[None]:
        over = threading.Event()

        def answer() -> None:
            answered: set[str] = set()
            while not over.wait(0.05):
                try:
                    waiting = self.api.get("/v1/holds", list[HoldView], state="pending")
                except BailiwickError:
                    continue
                for hold in waiting:
                    if hold.hold not in answered:
                        answered.add(hold.hold)
                        words = ("approve", hold.hold, "--yes") if granted else ("deny", hold.hold, "--why", "not tonight")
                        self.cli(*words)

        approver = threading.Thread(target=answer, daemon=True)
        approver.start()
        try:
            yield
        finally:
            over.set()
            approver.join()


@contextmanager
def _nobody() -> Iterator[None]:
    yield
