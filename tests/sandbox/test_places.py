"""A workspace and trees that are not what they seem: links of whoever may write the project, and files their owner may not read."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.sandboxes import ORDINARY_UID, Installation

from bailiwick.kernel.errors import CallerError
from bailiwick.sandbox.messages import DestroySandbox
from bailiwick.sandbox.places import open_place


@pytest.fixture
def around(here: Installation) -> Iterator[Path]:
    """A directory beside the installation that belongs to whoever the launcher runs as."""
    place = here.layout.root.with_name(here.layout.root.name + "-around")
    place.mkdir()
    os.chown(place, here.uid, here.uid)
    yield place
    shutil.rmtree(place)


def _as_user(*places: Path) -> None:
    for place in places:
        os.chown(place, ORDINARY_UID, ORDINARY_UID, follow_symlinks=False)


@pytest.mark.anyio
@pytest.mark.sandbox
async def test_a_users_link_does_not_lead_root_anywhere(here: Installation, around: Path) -> None:
    """Whoever owns the project of a root installation and puts a link where the workspace was gets nothing that is not theirs, not as tree either."""
    if here.uid != 0:
        pytest.skip("an ordinary user's launcher reads what that user may")
    project, keys = around / "project", around / "keys"
    project.mkdir()
    keys.mkdir(mode=0o700)
    (keys / "key").write_text("root's own")
    (project / "deployer").symlink_to(keys)
    _as_user(project, project / "deployer")
    for given in ({"workspace": str(project / "deployer")}, {"trees": [str(project / "deployer")]}):
        with pytest.raises(CallerError, match=f"leads over a link of uid {ORDINARY_UID} to what uid 0 owns"):
            await here.create(here.script("cat key", **given))


@pytest.mark.anyio
@pytest.mark.sandbox
async def test_links_that_hide_nothing_are_followed(here: Installation, around: Path) -> None:
    """A link of root's own, and a user's to what is the user's, still lead to a workspace."""
    project, actual = around / "project", around / "actual"
    project.mkdir()
    actual.mkdir()
    (actual / "file").write_text("seen")
    (project / "link").symlink_to("../actual")
    (project / "link2").symlink_to(project / "link")
    for path in (project, actual, actual / "file", project / "link", project / "link2"):
        os.chown(path, ORDINARY_UID, ORDINARY_UID, follow_symlinks=False) if os.getuid() == 0 else None
    output, errors, _ = await here.run(here.script("cat file", workspace=str(project / "link2")))
    assert output == "seen", errors


@pytest.mark.anyio
@pytest.mark.sandbox
@pytest.mark.parametrize("what", ["file", "directory", "whole"])
async def test_root_reads_what_the_owner_may(here: Installation, around: Path, what: str) -> None:
    """A file in a user's workspace that its owner cannot read is not read for them by root; nor is a directory of root's that lies in the user's."""
    if here.uid != 0:
        pytest.skip("an ordinary user's launcher reads what that user may")
    project = around / "project"
    (project / "inner").mkdir(parents=True)
    (project / "inner/mine").write_text("mine")
    _as_user(project, project / "inner", project / "inner/mine")
    closed = {"file": project / "theirs", "directory": project / "closed", "whole": project / "inner"}[what]
    closed.write_text("x") if what == "file" else closed.mkdir(exist_ok=True)
    closed.chmod(0o600 if what == "file" else 0o700)
    os.chown(closed, 0, 0)
    with pytest.raises(CallerError, match=f"cannot be read with the rights of uid {ORDINARY_UID}"):
        await here.create(here.script("true", workspace=str(project / "inner" if what == "whole" else project)))
    os.chown(closed, ORDINARY_UID, ORDINARY_UID)
    name, created = await here.create(here.script("true", workspace=str(project)))
    assert created.workspace_files in (2, 3)
    await here.call(DestroySandbox(run=name))


def test_the_way_is_walked_once(tmp_path: Path) -> None:
    """What is opened is the directory itself: a name that is changed afterwards changes nothing. Loops and dangling links are the caller's errors."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "link").symlink_to("a")
    place = open_place("workspace", str(tmp_path / "link"), separate=True)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    assert os.stat("file", dir_fd=place.descriptor)
    os.close(place.descriptor)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name, said in (("loop", "more than 40 links"), ("dangling", "cannot be opened")):
        with pytest.raises(CallerError, match=said):
            open_place("workspace", str(tmp_path / name), separate=True)
