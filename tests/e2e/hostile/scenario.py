"""The hostile agent in the whole product: every group of its attempts a run of its own, all at once, beside a neighbour; then what they left is looked at.

Runs in a world outside (`tests.e2e.world.outside`), as root or as an ordinary user:  python -m tests.e2e.hostile.scenario REPORT
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.e2e.hostile.places import Places
from tests.e2e.installation import TREES, Done, Installation
from tests.e2e.world.outside import ABSTRACT, LOOPBACK_PORT

from bailiwick.broker.inject import PLACEHOLDER
from bailiwick.governor.views import ChangesView
from bailiwick.sandbox.cgroup import Cgroups

AGENT = Path(__file__).parent / "agent"
GROUPS = ("network", "names", "http", "request", "files", "kernel", "exhaustion")
RUN_SECONDS_MAX = 90.0

MIB = 1024 * 1024
NEIGHBOUR = {"port": 7777, "abstract": "hostile-neighbour", "address": "198.51.100.77"}
LIMITS = {"pids": 64, "open_files": 512, "disk": 64 * MIB}


def facts(installed: Installation, neighbour: str, memory: int) -> dict[str, Any]:
    """What an attacker might know who has seen the machine before."""
    pids = installed.pids()
    launcher = f"/proc/{pids['launcher']}/ns"
    return {
        "resolver": "198.18.0.1",
        "proxy": "198.18.0.1",
        "models": "198.18.0.2",
        "elsewhere": "203.0.113.200",
        "loopback_port": LOOPBACK_PORT,
        "abstract": ABSTRACT,
        "placeholder": PLACEHOLDER,
        "state": str(installed.layout.root),
        "sockets": [str(path) for path in sorted(installed.layout.sockets.glob("*.sock"))],
        "files": [str(installed.directory / name) for name in ("bailiwick.yaml", "secrets/token")],
        "trees": TREES,
        "pids": sorted(pids.values()),
        "namespaces": {name: os.readlink(f"{launcher}/{name}") for name in ("net", "mnt", "pid", "user", "ipc", "uts") if readable(f"{launcher}/{name}")},
        "neighbour": NEIGHBOUR | {"pid": pid_of(neighbour)},
        "limits": LIMITS | {"memory": memory},
    }


def readable(link: str) -> bool:
    try:
        os.readlink(link)
    except OSError:
        return False
    return True


def pid_of(run: str) -> int:
    """Of the run's own process, as the machine counts."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"neighbour.py" in (entry / "cmdline").read_bytes() and run.encode() in (entry / "environ").read_bytes():
                return int(entry.name)
    return 2**22 - 1  # not to be seen by an ordinary user: then it is nobody's


def configuration(places: Places, memory: int | None) -> str:
    limits = LIMITS | {"wall": "80s"} | ({"memory": memory} if memory else {})
    shared = {"workspace": "./agent", "trees": TREES, "limits": limits}
    hostile = {
        "boundary": [
            {"allow": ["read"], "http": "open.internal", "path": "/public/**"},
            {"hold": ["write"], "http": "open.internal", "path": "/held/**", "approvers": ["oncall"], "wait": "500ms"},
        ],
        "models": {"provider": "openai", "allow": ["gpt-5.2"]},
        "credentials": [
            {"use": "token", "for": "open.internal", "as": "Authorization: Bearer {value}"},
            {"use": "key", "for": "api.openai.com", "as": "Authorization: Bearer {value}"},
        ],
    }
    agents: dict[str, Any] = {group: shared | hostile | {"command": [sys.executable, "agent.py", group]} for group in GROUPS}
    agents["neighbour"] = shared | {"command": [sys.executable, "neighbour.py", str(NEIGHBOUR["port"]), NEIGHBOUR["abstract"]]}
    agents["ordinary"] = shared | hostile | {"command": [sys.executable, "ordinary.py"]}
    whole = {
        "hosts": places.pins(),
        "approvers": {"oncall": {"operators": ["ana"]}},
        "agents": agents,
        "credentials": {"token": {"source": "file", "path": "secrets/token"}, "key": {"source": "environment", "variable": "HOSTILE_MODEL_KEY"}},
    }
    return json.dumps(whole, indent=1)


def memory_limit() -> int | None:
    """None where the kernel does not bound it for us: then a configuration may not ask for it."""
    with contextlib.closing(Cgroups.find("hostile-suite")) as groups:
        return 128 * MIB if "memory" in groups.enforces else None


def told(done: Done) -> dict[str, Any]:
    """`said` is of the standard output alone: the two streams are recorded in pieces, which may come between each other's."""
    said = "".join(event["body"].get("text", "") for event in done.of("run.output") if event["body"]["stream"] == "stdout")
    events = [event for event in done.events if event["kind"] != "run.output"]
    written = sum(len(event["body"].get("text", "")) for event in done.of("run.output"))
    view = {"run": done.view.run, "cause": done.view.cause, "status": done.view.status, "detail": done.view.detail}
    return view | {"said": said, "written": written, "events": events}


def found(directory: Path, needles: list[str]) -> list[str]:
    """Files below that hold any of the texts."""
    holding = []
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and any(needle.encode() in path.read_bytes() for needle in needles):
            holding.append(str(path))
    return holding


def applied(installed: Installation, run: str, target: Path) -> dict[str, Any]:
    """What the run left, brought back by its operator into a copy of what it was given, and what lies there then."""
    done = installed.cli("apply", run, "--to", str(target), "--yes")
    left = {os.fsdecode(path.relative_to(target)): path for path in target.rglob("*")}
    return {
        "status": done.returncode,
        "said": done.stdout + done.stderr,
        "names": sorted(left),
        "links": {name: os.readlink(path) for name, path in left.items() if path.is_symlink()},
        "leading_out": [name for name, path in left.items() if path.is_symlink() and not path.resolve().is_relative_to(target.resolve())],
        "setuid": [name for name, path in left.items() if not path.is_symlink() and path.stat().st_mode & 0o6000],
        "special": [name for name, path in left.items() if not (path.is_symlink() or path.is_file() or path.is_dir())],
    }


def main(report: Path) -> None:
    token, key = f"planted-token-{secrets.token_urlsafe(24)}", f"planted-key-{secrets.token_urlsafe(24)}"
    memory = memory_limit()
    files: dict[str, str | bytes] = {f"agent/{path.name}": path.read_bytes() for path in AGENT.glob("*.py")}
    files |= {"secrets/token": token, "agent/secret.txt": "the neighbour's", "agent/kept/file.txt": "kept\n"}
    with Places(token, key) as places:
        files["ca.pem"] = places.authority.pem
        installed = Installation(configuration(places, memory), files=files, environment={"HOSTILE_MODEL_KEY": key})
        (installed.directory / "secrets/token").chmod(0o600)
        with installed:
            neighbour = installed.begin("neighbour", "be there")
            installed.wait(lambda: "ready" in json.dumps(installed.events(neighbour)), "a neighbour")
            installed.write("agent/facts.json", json.dumps(facts(installed, neighbour, memory or 1024 * MIB)))
            target = Path(shutil.copytree(installed.directory / "agent", installed.directory / "applied"))
            begun = {group: installed.begin(group, "get out") for group in GROUPS}
            groups = {group: told(installed.wait_ended(run, RUN_SECONDS_MAX)) for group, run in begun.items()}
            ordinary = told(installed.run("ordinary", "do your work"))
            processes = installed.cli("status", "--json").stdout
            alive = installed.view(neighbour).state
            installed.cli("kill", neighbour, check=True)
            seen = told(installed.wait_ended(neighbour))
            outcome = {
                "uid": os.getuid(),
                "groups": groups,
                "ordinary": ordinary,
                "neighbour": {"state": alive, **seen},
                "processes": json.loads(processes),
                "changes": vars_of(installed.api.get(f"/v1/runs/{begun['files']}/changes", ChangesView)),
                "applied": applied(installed, begun["files"], target),
                "left": installed.left(*begun.values(), neighbour, ordinary["run"]),
                "secrets_in_events": [event["kind"] for event in installed.events() if token in json.dumps(event) or key in json.dumps(event)],
                "secrets_in_state": found(installed.layout.root, [token, key]),
                "logs": installed.logs(),
            }
        outcome["journal"] = places.journal
    report.write_text(json.dumps(outcome))


def vars_of(changes: ChangesView) -> dict[str, Any]:
    return {"changes": changes.changes, "refused": changes.refused}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
