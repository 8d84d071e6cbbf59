"""Connections to SQLite: one writer that owns the file, and readers of other uids while it lives.

WAL, so that readers never wait for the writer; synchronous=FULL, so that what was committed survives a power cut. A reader opens `mode=ro`: it can
write nothing, whoever it is. The file is made readable for others and its directory decides who they are (SQLite gives -wal and -shm the same mode).
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from bailiwick.store import migrations
from bailiwick.store.errors import SchemaMismatch, StoreError

BUSY_SECONDS_MAX = 5.0  # a second writer (an operator's sqlite3 shell) is waited for this long
WAL_BYTES_KEPT_MAX = 64 * 1024 * 1024  # a WAL that grew behind a long read is cut to this once it is no longer needed
WAL_PAGES = 1_000  # SQLite's own default
_FILE_MODE = 0o644


@contextlib.contextmanager
def translated(path: Path | None = None) -> Iterator[None]:
    """sqlite3's errors as StoreError, with the file they speak of."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path or 'database'}: {error}") from error


def open_writer(path: Path, room: str, *, wal_pages: int = WAL_PAGES) -> sqlite3.Connection:
    """The one connection that writes; its schema is brought up to date from `room`'s migrations (a package, as in `bailiwick.record`).

    `wal_pages` is how many pages gather in the WAL before a commit moves them to the database: more is less work in all, and a longer commit then.

    Autocommit: use `transaction`. Raises StoreError, also for a database that a newer version has migrated.
    """
    with translated(path):
        try:
            existed = path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    os.fchmod(descriptor, _FILE_MODE)  # whatever the umask said
            finally:
                os.close(descriptor)
            if not existed:
                directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)  # SQLite does this for its own files only
                finally:
                    os.close(directory)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS_MAX)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreError(f"{path}: journal mode is {mode}; must be wal, so the file must lie on a local file system")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA temp_store = MEMORY")  # a process confined to its own directory has no /tmp
            connection.execute(f"PRAGMA wal_autocheckpoint = {wal_pages}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT_MAX}")
            migrations.migrate(connection, room)
        except BaseException:
            connection.close()
            raise
        return connection


def open_reader(path: Path, room: str) -> sqlite3.Connection:
    """A connection that can only read, from any thread (calls are serialised by SQLite). Raises StoreError when there is nothing to read yet, or its
    schema is not the one this code knows."""
    with translated(path):
        if not path.exists():
            raise StoreError(f"{path}: is not there; its writer creates it at its first start")
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_SECONDS_MAX, check_same_thread=False)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA temp_store = MEMORY")
            migrations.require_current(connection, room)
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block or none of it, durable when it ends. Raises StoreError; after one the connection is usable again if the machine lets it."""
    with translated():
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


__all__ = ["SchemaMismatch", "StoreError", "open_reader", "open_writer", "transaction", "translated"]
