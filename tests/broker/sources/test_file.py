"""The file source: what it refuses to read, and what it does when the file changes under it."""

import os
from pathlib import Path

import pytest

from bailiwick.broker.sources.file import FileSource
from bailiwick.broker.sources.port import SourceError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_bytes(b"first\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601, 0o777])
async def test_a_file_open_to_everybody_is_refused_with_the_way_out(path: Path, mode: int) -> None:
    """The error holds the command that mends it."""
    path.chmod(mode)
    with pytest.raises(SourceError, match=f"run: chmod o-rwx {path}"):
        await FileSource("token", path).fetch()
    path.chmod(0o640)
    assert (await FileSource("token", path).fetch()).reveal() == b"first"


async def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """A FIFO without a writer, a directory and a device are told at once."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(SourceError, match="regular file"):
            await FileSource("token", path).fetch()


async def test_a_rotated_file_shows_its_new_value(path: Path) -> None:
    """Written in place or renamed over, where the broker may open it again."""
    source = FileSource("token", path)
    source.open()
    path.write_bytes(b"second\n")
    assert (await source.fetch()).reveal() == b"second"
    new = path.with_name("new")
    new.write_bytes(b"third\n")
    new.chmod(0o600)
    new.replace(path)
    assert (await source.fetch()).reveal() == b"third"
    source.close()


async def test_a_file_that_is_gone_is_not_served_from_memory(path: Path) -> None:
    """Removing the file takes the credential away."""
    source = FileSource("token", path)
    source.open()
    path.unlink()
    with pytest.raises(SourceError, match="cannot be opened: No such file"):
        await source.fetch()
    source.close()


class NotAllowed(FileSource):
    """As if the uid had been dropped: the path may no longer be opened, the kept descriptor may be read."""

    async def fetch(self):  # type: ignore[no-untyped-def]
        return self._read_kept()


async def test_after_the_uid_is_dropped_the_kept_descriptor_is_read(path: Path) -> None:
    """A rotation in place shows at once; a replaced file is refused, not served stale; its mode is looked at each time."""
    source = NotAllowed("token", path)
    source.open()
    assert (await source.fetch()).reveal() == (await source.fetch()).reveal() == b"first"
    path.write_bytes(b"second")
    assert (await source.fetch()).reveal() == b"second"
    path.chmod(0o644)
    with pytest.raises(SourceError, match="open to everybody"):
        await source.fetch()
    path.chmod(0o600)
    new = path.with_name("new")
    new.write_bytes(b"third\n")
    new.replace(path)
    with pytest.raises(SourceError, match="was replaced since bailiwick was started"):
        await source.fetch()
    source.close()
    with pytest.raises(SourceError, match="was not there when bailiwick was started"):
        await source.fetch()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="drops its uid")
async def test_really_dropped(path: Path) -> None:
    """With another uid the file that only its owner may read is read through the descriptor."""
    source = FileSource("token", path)
    source.open()
    os.seteuid(761_998)
    try:
        assert (await source.fetch()).reveal() == b"first"
        with pytest.raises(SourceError, match="may not be read by the broker"):
            await FileSource("token", path).fetch()
    finally:
        os.seteuid(0)
        source.close()
