import os
import subprocess
import sys
from pathlib import Path

import pytest

from bailiwick.cli.demo.remains import remains

RUN = "run-0demo0remains"


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


def test_nothing_is_nothing(nowhere: Path) -> None:
    """A run that never was has left nothing."""
    assert remains([RUN], sandboxes=nowhere) == []


def test_a_process_of_the_run_is_found(nowhere: Path) -> None:
    """A process that carries the run's id in its environment is found by it, and no longer once it is dead."""
    program = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(program, env={"BAILIWICK_RUN": RUN}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = remains([RUN], sandboxes=nowhere)
        assert len(found) == 1
        assert found[0].startswith(f"process {child.pid} (")
        assert remains([RUN], sandboxes=nowhere, holders=[child.pid]) == []
        child.kill()
        child.wait()
    assert remains([RUN], sandboxes=nowhere) == []


def test_groups_and_directories_are_found(tmp_path: Path) -> None:
    """What is named after the run, in any depth of the control groups and among the sandboxes."""
    (tmp_path / "groups" / "memory" / "bailiwick" / RUN).mkdir(parents=True)
    (tmp_path / "sandboxes" / RUN).mkdir(parents=True)
    (tmp_path / "sandboxes" / "run-other").mkdir()
    found = remains([RUN], sandboxes=tmp_path / "sandboxes", cgroups=tmp_path / "groups")
    assert found == [f"control group {tmp_path}/groups/memory/bailiwick/{RUN}", f"directory {tmp_path}/sandboxes/{RUN}"]


def test_mounts_and_namespaces_of_a_holder_are_found(tmp_path: Path) -> None:
    """A process of ours that still holds a run's namespace or mount is told from one that holds none."""
    proc = tmp_path / "proc"
    for pid, descriptor in (("self", None), ("41", "net:[4026532001]"), ("42", "net:[1]")):
        (proc / pid / "ns").mkdir(parents=True)
        (proc / pid / "fd").mkdir()
        os.symlink("net:[1]", proc / pid / "ns" / "net")
        if descriptor:
            os.symlink(descriptor, proc / pid / "fd" / "7")
        (proc / pid / "mountinfo").write_text("24 30 0:22 / /proc rw - proc proc rw\n")
    (proc / "42" / "mountinfo").write_text(f"25 30 0:23 / {tmp_path}/sandboxes/{RUN}/work rw - tmpfs tmpfs rw\n")
    found = remains([RUN], sandboxes=tmp_path / "sandboxes", holders=[41, 42], proc=proc, cgroups=tmp_path)
    assert found == [f"mount {tmp_path}/sandboxes/{RUN}/work", "network namespace net:[4026532001] held by process 41"]
