"""A workspace through a whole run: in, changed by the agent, and back to the governor."""

import os
import signal
import tarfile
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from tests.fakes.sandboxes import MIB, Installation, fork_launcher, wait_until

from bailiwick.kernel.channel import Channel
from bailiwick.kernel.errors import CallerError, PeerError
from bailiwick.sandbox.messages import CollectWorkspace, DestroySandbox, StartAgent
from bailiwick.sandbox.spec import SandboxLimits

pytestmark = [pytest.mark.anyio, pytest.mark.sandbox]


@pytest.fixture
def project(here: Installation) -> Path:
    place = here.layout.root.with_name(here.layout.root.name + "-project")
    (place / "src").mkdir(parents=True)
    (place / "src/main.py").write_text("print('hi')\n")
    (place / "old").write_text("old")
    os.symlink("/etc/hostname", place / "leads-out")
    for path in [place, *place.rglob("*")]:
        os.chown(path, here.uid, here.uid, follow_symlinks=False)
    yield place
    import shutil

    shutil.rmtree(place)


async def test_changes_come_back_and_nothing_else(here: Installation, project: Path) -> None:
    """The agent sees its own copy; what it changed comes back as a list and a tar, what may act does not; the operator's directory is untouched."""
    script = "cat src/main.py; echo new > src/new.py; rm old; chmod 700 src/main.py; ln -s /etc/passwd bad; mkfifo pipe; mkdir -m 0 shut; cat leads-out"
    name, created = await here.create(here.script(script, workspace=str(project)))
    assert created.workspace_files == 4
    await here.call(StartAgent(run=name))
    assert await here.read(name, "stdout") == "print('hi')\nagent\n"  # the sandbox's own /etc/hostname
    assert (await here.exit_of(name)).status == 0
    collected = await here.call(CollectWorkspace(run=name))
    assert {change.path: change.change for change in collected.changes} == {"src/new.py": "added", "old": "deleted", "src/main.py": "mode", "shut": "added"}
    assert sorted(line.split(":")[0] for line in collected.refused) == ["bad", "pipe"]
    status = os.stat(collected.archive)
    assert status.st_mode & 0o7777 == 0o600
    assert status.st_uid == (os.getuid() if here.uid == 0 else here.uid)
    with tarfile.open(collected.archive) as archive:
        assert sorted(archive.getnames()) == ["shut", "src/main.py", "src/new.py"]
    assert (project / "old").read_text() == "old"
    assert not (project / "src/new.py").exists()
    assert (await here.call(CollectWorkspace(run=name))).changes == collected.changes
    await here.call(DestroySandbox(run=name))


async def test_no_change_no_archive(here: Installation, project: Path) -> None:
    """A run that changed nothing leaves no tar."""
    name = await here.begin(here.script("touch -d '2001-01-01' old; cat old", workspace=str(project)))
    await here.exit_of(name)
    collected = await here.call(CollectWorkspace(run=name))
    assert (collected.changes, collected.archive, collected.refused) == ([], "", [])
    assert list((here.layout.governor / "workspaces").iterdir()) == []


async def test_a_workspace_too_large_for_the_disk(here: Installation, project: Path) -> None:
    """It is the caller's error, with the bound, and nothing is left."""
    (project / "big").write_bytes(os.urandom(3 * MIB))
    os.chown(project / "big", here.uid, here.uid)
    with pytest.raises(CallerError, match=r"workspace is larger than 2097152 bytes at 'big'"):
        await here.create(here.script("true", workspace=str(project), limits=SandboxLimits(disk_bytes=2 * MIB)))


async def test_a_hole_fills_no_disk_but_its_own(here: Installation, project: Path) -> None:
    """A file may be no larger than the disk, with or without blocks; holes that together are larger do not become a tar that is."""
    script = """
truncate -s 9000000 too-large && echo made || echo refused
for n in 1 2 3 4 5 6; do truncate -s 7000000 hole$n || exit 9; done
echo kept > small
"""
    name = await here.begin(here.script(script, workspace=str(project), limits=SandboxLimits(disk_bytes=8 * MIB)))
    assert await here.read(name, "stdout") == "refused\n"
    assert (await here.exit_of(name)).status == 0
    collected = await here.call(CollectWorkspace(run=name))
    assert os.stat(collected.archive).st_size < 9 * MIB
    with tarfile.open(collected.archive) as archive:
        assert {"hole1", "small"} <= set(archive.getnames())
    assert [line for line in collected.refused if "hole6: 7000000 bytes are more than the archive, bounded by limits.disk, has left" in line]


async def test_what_is_not_finished_is_not_there(here: Installation, project: Path) -> None:
    """An archive that nobody will be told of is taken away: when its making is given up, and by the successor of a launcher that was killed."""
    name = await here.begin(
        here.script("for n in 1 2 3 4; do dd if=/dev/zero of=f$n bs=1M count=40 2>&1; done", workspace=str(project), limits=SandboxLimits(disk_bytes=256 * MIB))
    )
    await here.exit_of(name)
    place = here.layout.governor / "workspaces"
    another = await here.connect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(another.run)
        tasks.start_soon(_given_up, another, name)
        await wait_until(lambda: place.is_dir() and any(place.iterdir()))
        another.close()
        await wait_until(lambda: not any(place.iterdir()))
    place.joinpath("run-x.tar.unfinished").touch()
    place.joinpath("run-y.tar").touch()
    os.kill(here.pid, signal.SIGKILL)
    os.waitpid(here.pid, 0)
    here.pid = fork_launcher(here.layout, here.accounts, here.uid, here.listener)
    await wait_until(lambda: [path.name for path in place.iterdir()] == ["run-y.tar"])


async def _given_up(channel: Channel, name: str) -> None:
    with suppress(PeerError):
        await channel.call(CollectWorkspace(run=name))


async def test_a_link_of_the_governors_is_not_followed(here: Installation, project: Path) -> None:
    """The archive is written by a process that may write anywhere; a link in its way is an error, not a path."""
    here.layout.governor.mkdir(exist_ok=True)
    (here.layout.root / "elsewhere").mkdir()
    os.symlink(here.layout.root / "elsewhere", here.layout.governor / "workspaces")
    os.chown(here.layout.governor, here.uid, here.uid)
    name = await here.begin(here.script("echo x > new", workspace=str(project)))
    await here.exit_of(name)
    with pytest.raises(Exception, match="cannot be made"):
        await here.call(CollectWorkspace(run=name))
    assert list((here.layout.root / "elsewhere").iterdir()) == []
