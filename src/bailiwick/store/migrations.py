"""Migrations: `NNNN_{pre|post}_what.sql` in a room's `migrations/`, numbered from 0001 without a gap, applied in order, each in a transaction.

`pre` is what old code can live with (a new table, a column with a default): it may run before the old code is gone. `post` is what it cannot.
On one machine the writer applies both at its start. The number of the last one applied stands in the database's `user_version`.
"""

import contextlib
import re
import sqlite3
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bailiwick.store.errors import SchemaMismatch

_NAME = re.compile(r"(\d{4})_(pre|post)_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str


@cache
def of_room(room: str) -> tuple[Migration, ...]:
    """The migrations of a package, in order. ValueError for a name that is not as above or a number that is not the next."""
    found = []
    for entry in (resources.files(room) / "migrations").iterdir():
        if not entry.name.endswith(".sql"):
            continue
        match = _NAME.fullmatch(entry.name)
        if match is None:
            raise ValueError(f"migration {entry.name} of {room}; must be named NNNN_pre_what.sql or NNNN_post_what.sql")
        found.append(Migration(int(match[1]), entry.name, entry.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations of {room} are {[migration.name for migration in found]}; must be numbered from 0001 without a gap")
    return tuple(found)


def version(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    return int(number)


def migrate(connection: sqlite3.Connection, room: str) -> None:
    """Applies what is not applied yet. SchemaMismatch when the database is newer than the code: nothing is touched then."""
    known = of_room(room)
    _refuse_newer(connection, room)
    for migration in known[version(connection) :]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version(connection) == migration.number - 1:  # nobody else was faster
                for statement in statements(migration.sql):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {migration.number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def require_current(connection: sqlite3.Connection, room: str) -> None:
    """For a reader, which may not migrate."""
    _refuse_newer(connection, room)
    if version(connection) < len(of_room(room)):
        raise SchemaMismatch(f"database of {room} is at migration {version(connection)}; must be {len(of_room(room))}: start its writer first")


def _refuse_newer(connection: sqlite3.Connection, room: str) -> None:
    if version(connection) > len(of_room(room)):
        raise SchemaMismatch(
            f"database of {room} is at migration {version(connection)}; this version knows {len(of_room(room))}: install the version that wrote it"
        )


def statements(sql: str) -> list[str]:
    """A script's statements; `executescript` would commit the transaction it stands in."""
    found, start = [], 0
    for index, character in enumerate(sql):
        if character == ";" and sqlite3.complete_statement(sql[start : index + 1]):
            found.append(sql[start : index + 1].strip())
            start = index + 1
    if rest := "\n".join(line for line in sql[start:].splitlines() if not line.lstrip().startswith("--")).strip():
        raise ValueError(f"statement without a semicolon at its end: {rest[:80]!r}")
    return found


def _read_ahead() -> None:
    """Every room's migrations, while we import: a process that has dropped its uid may not reach these files any more."""
    for entry in resources.files("bailiwick").iterdir():
        if (entry / "migrations").is_dir():
            with contextlib.suppress(ValueError):  # raised again to whoever opens that room's database
                of_room(f"bailiwick.{entry.name}")


_read_ahead()
