"""Runs the commands of commands.json, a few at a time, and writes what became of each as a line of JSON. A program in a sandbox, which knows only those."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 3


def run(item: tuple[str, dict]) -> str:
    name, command = item
    environment = {**os.environ, **command.get("environment", {})}
    done = subprocess.run(command["words"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return json.dumps({"name": name, "status": done.returncode, "out": done.stdout[-2000:], "err": done.stderr[-2000:]})


with ThreadPoolExecutor(AT_ONCE) as pool:
    for line in pool.map(run, json.loads(Path("commands.json").read_text()).items()):
        sys.stdout.write(line + "\n")
