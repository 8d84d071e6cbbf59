import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from bailiwick.cli.demo.world import Journals, Keys, World, WorldProcess


def test_the_process_serves_and_its_journals_are_read(keys: Keys) -> None:
    """The servers in their own process answer over TLS under their authority, and say what arrived, without the keys."""
    with WorldProcess(keys) as world:
        doors = world.doors
        request = urllib.request.Request(f"https://localhost:{doors.configuration}/v1/staging/image", headers={"authorization": f"Bearer {keys.configuration}"})
        with urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cadata=doors.ca)) as answer:
            assert json.loads(answer.read())["environment"] == "staging"
        journals = world.journals()
        assert isinstance(journals, Journals)
        assert [arrival["authorised"] for arrival in journals.configuration] == [True]
        assert (journals.stranger_reached, journals.stranger_can_count) == (0, True)
        assert not any(secret in repr(journals) for secret in (keys.model, keys.configuration))
        command = Path(f"/proc/{world.pid}/cmdline").read_bytes() + Path(f"/proc/{world.pid}/environ").read_bytes()
        assert keys.model.encode() not in command
        pid = world.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_ends_with_who_started_it() -> None:
    """kill -9 of the demo leaves no server behind."""
    program = """
import os, sys
from bailiwick.cli.demo.world import Keys, WorldProcess
with WorldProcess(Keys.fresh()) as world:
    print(world.pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server = int(starter.stdout.readline())
        starter.send_signal(signal.SIGKILL)
        starter.wait(10)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{server}/stat").exists() and _state(server) != "Z" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{server}/stat").exists() or _state(server) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_world_that_does_not_come_up_says_so(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends before it serves is an error at once, and nothing hangs."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises((RuntimeError, OSError)), WorldProcess(keys):
        pytest.fail("it came up")


def test_the_journal_door_shows_journals_only(keys: Keys) -> None:
    """Anything but GET /journals is 404."""
    with World(keys) as world, pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{world.doors.journals}/values", timeout=5)
    refused.value.close()
    assert refused.value.code == 404


def test_keys_have_no_text(keys: Keys) -> None:
    """What the servers demand is not shown by repr."""
    assert keys.model not in repr(keys)
    assert keys.configuration not in repr(keys)
