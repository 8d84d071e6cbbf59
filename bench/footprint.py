"""What an idle installation takes, and how long a person waits: memory and CPU of all processes, `--help`, `run -- true` warm and cold.

Ends with one JSON line: {"idle_pss_mb", "idle_cpu_percent", "help_s", "run_warm_s", "run_cold_s", ...}. Medians of ROUNDS. A bare interpreter's start
stands beside, measured in the same rounds: what no command of a Python program can be faster than.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bailiwick.kernel.layout import Layout

ROUNDS = 7
IDLE_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bw-bench-", dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        layout = Layout(Path(scratch) / "s")
        work = Path(scratch) / "work"
        work.mkdir()
        environment = {**os.environ, "BAILIWICK_STATE": str(layout.root)}

        def bailiwick(*words: str) -> float:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "bailiwick.cli", *words], cwd=work, env=environment, check=True, capture_output=True)
            return time.perf_counter() - begun

        def bare() -> float:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            return time.perf_counter() - begun

        helps, bares, colds, warms = [], [], [], []
        for _ in range(ROUNDS):
            bares.append(bare())
            helps.append(bailiwick("--help"))
            colds.append(bailiwick("run", "--no-workspace", "--", "true"))
            warms.extend(bailiwick("run", "--no-workspace", "--", "true") for _ in range(3))
            bailiwick("down")
        bailiwick("up", "--detach", "--no-config")
        pids = [entry["pid"] for entry in json.loads((layout.sockets / "processes.json").read_text())]
        pids.append(int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1]))  # the parent of them all
        time.sleep(2.0)  # what a start leaves to be done is done
        begun = cpu_seconds(pids)
        time.sleep(IDLE_SECONDS)
        used = cpu_seconds(pids) - begun
        memory = {name_of(pid): pss_kb(pid) for pid in pids}
        bailiwick("down")
    median = statistics.median
    print(
        json.dumps(
            {
                "idle_pss_mb": round(sum(memory.values()) / 1024, 1),
                "idle_cpu_percent": round(100 * used / IDLE_SECONDS, 2),
                "help_s": round(median(helps), 3),
                "run_warm_s": round(median(warms), 3),
                "run_cold_s": round(median(colds), 3),
                "bare_interpreter_s": round(median(bares), 3),
                "run_warm_p95_s": round(sorted(warms)[int(0.95 * len(warms))], 3),
                "processes": len(pids),
                "rounds": ROUNDS,
            }
        )
    )


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def pss_kb(pid: int) -> int:
    """Proportional set size: shared pages are counted once over all that share them (proc(5), smaps_rollup)."""
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))


def name_of(pid: int) -> str:
    return f"{Path(f'/proc/{pid}/comm').read_text().strip()}-{pid}"


if __name__ == "__main__":
    main()
