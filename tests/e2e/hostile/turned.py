"""An installation in which one process has been taken over: hostile code runs in it, on order, as if a parser of it had been made to.

    python -m tests.e2e.hostile.turned PROCESS CONFIG STATE FACTS

Nothing of the product is weakened for it. The programs are those of `app.processes`, with their accounts, descriptors, Landlock rules and seccomp filters;
only what the process runs last of all, its room's `run`, is wrapped: a thread beside it waits for SIGUSR2 and then does what `turned_PROCESS` does, with
everything the process holds and under everything that holds it. What it achieved is printed to the process's log, one JSON line an attempt.
"""

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.hostile.intruder import Attempt, Stopped

import bailiwick.gateway.worker
import bailiwick.record.recorder
from bailiwick.app import processes
from bailiwick.kernel import environment
from bailiwick.kernel.layout import Layout

MARK = "turned: "
ORDER = signal.SIGUSR2


def report(attempts: Iterator[Attempt]) -> None:
    """Whatever comes back without an exception has succeeded; what fails otherwise than by being refused is said to be broken."""
    for name, make in attempts:
        line: dict[str, Any] = {"attempt": name, "succeeded": False, "broke": False}
        try:
            line |= {"succeeded": True, "detail": str(make())[:300]}
        except (OSError, Stopped) as error:
            line |= {"detail": str(error)[:300]}
        except BaseException as error:
            line |= {"broke": True, "detail": f"{type(error).__name__}: {error}"[:300]}
        sys.stdout.write(f"{MARK}{json.dumps(line)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{MARK}over\n")
    sys.stdout.flush()


def wrap(room: Any, process: str, facts: Path) -> None:
    faithful = room.run

    def run(**given: Any) -> None:
        if given.get("name", process) == process:
            signal.pthread_sigmask(signal.SIG_BLOCK, {ORDER})  # in every thread that comes after

            def wait() -> None:
                signal.sigwait({ORDER})
                try:
                    report(hostile.attempts(json.loads(facts.read_text()), given))
                except BaseException as error:
                    sys.stdout.write(f"{MARK}{json.dumps({'attempt': 'all', 'succeeded': False, 'broke': True, 'detail': repr(error)})}\n{MARK}over\n")
                    sys.stdout.flush()

            threading.Thread(target=wait, name="hostile", daemon=True).start()
        faithful(**given)

    hostile = importlib.import_module(f"tests.e2e.hostile.turned_{process.partition('-')[0]}")
    room.run = run


def main(process: str, configuration: str, state: str, facts: str) -> int:
    if environment.DESCRIPTOR not in os.environ:  # as `processes.up` does it: the secrets of the environment are in nobody's memory but the broker's
        packed = environment.pack(os.environb)
        os.execve(sys.executable, [sys.executable, "-m", "tests.e2e.hostile.turned", *sys.argv[1:]], environment.harmless(os.environ, packed))
    rooms = {"gateway": bailiwick.gateway.worker, "recorder": bailiwick.record.recorder}
    wrap(rooms[process.partition("-")[0]], process, Path(facts))
    return processes.up(Path(configuration), Layout(Path(state)), workers=2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
