"""The database's door: what is durable, who may read, what is refused."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bailiwick.store.connection import StoreError, open_reader, open_writer, transaction, translated

ROOM = "bailiwick.record"


def test_the_writer_is_durable_and_strict(tmp_path: Path) -> None:
    """WAL with synchronous=FULL and foreign keys on."""
    connection = open_writer(tmp_path / "a.db", ROOM)
    values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert values == ["wal", 2, 1]
    connection.close()


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    """An error in the block leaves nothing of it, and the connection usable."""
    connection = open_writer(tmp_path / "a.db", ROOM)
    with pytest.raises(StoreError, match="UNIQUE"), transaction(connection):
        connection.executemany("INSERT INTO verifiers VALUES (?, 't')", [("k",), ("l",), ("k",)])
    assert connection.execute("SELECT count(*) FROM verifiers").fetchone() == (0,)
    with transaction(connection):
        connection.execute("INSERT INTO verifiers VALUES ('k', 't')")
    assert connection.execute("SELECT count(*) FROM verifiers").fetchone() == (1,)
    connection.close()


def test_a_reader_reads_what_is_committed_and_writes_nothing(tmp_path: Path) -> None:
    """A read-only connection sees commits at once and cannot write by any statement."""
    writer = open_writer(tmp_path / "a b?.db", ROOM)
    reader = open_reader(tmp_path / "a b?.db", ROOM)
    with transaction(writer):
        writer.execute("INSERT INTO verifiers VALUES ('k', 't')")
    assert reader.execute("SELECT verifier FROM verifiers").fetchall() == [("k",)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM verifiers")
    reader.execute("PRAGMA query_only = OFF")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM verifiers")
    reader.close()
    writer.close()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Where other uids may go; pytest closes its own directories to them."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another uid")
def test_another_uid_reads_while_the_writer_lives(open_place: Path) -> None:
    """The governor's uid reads the recorder's file, whatever the writer's umask, and cannot write it."""
    old = os.umask(0o077)
    try:
        writer = open_writer(open_place / "a.db", ROOM)
        with transaction(writer):
            writer.execute("INSERT INTO verifiers VALUES ('k', 't')")
    finally:
        os.umask(old)
    script = """
import os, sys
from pathlib import Path
from bailiwick.store.connection import open_reader
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
reader = open_reader(Path(sys.argv[1]), "bailiwick.record")
assert reader.execute("SELECT verifier FROM verifiers").fetchall() == [("k",)]
try:
    reader.execute("DELETE FROM verifiers")
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(open_place / "a.db")], capture_output=True, text=True, check=False)
    assert "readonly" in done.stdout, done.stderr
    writer.close()


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A reader of a database that nobody wrote yet is told so; no file appears."""
    with pytest.raises(StoreError, match="not there"):
        open_reader(tmp_path / "a.db", ROOM)
    assert not list(tmp_path.iterdir())


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """The writer does not follow a symbolic link put where its file belongs."""
    (tmp_path / "a.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be opened"):
        open_writer(tmp_path / "a.db", ROOM)


def test_damage_is_a_store_error(tmp_path: Path) -> None:
    """A file that is no database is refused with its name."""
    (tmp_path / "a.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"a\.db: file is not a database"):
        open_writer(tmp_path / "a.db", ROOM)
    with pytest.raises(StoreError, match="x"), translated(Path("x")):
        raise sqlite3.OperationalError("disk I/O error")
