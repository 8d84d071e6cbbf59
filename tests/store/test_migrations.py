"""Migrations: in order, whole, and never backwards."""

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bailiwick.store import migrations, queries
from bailiwick.store.connection import SchemaMismatch, open_reader, open_writer

ROOT = Path(__file__).parent.parent.parent / "src" / "bailiwick"
ROOMS = sorted(f"bailiwick.{path.parent.name}" for path in ROOT.glob("*/migrations") if path.is_dir())


def schema(connection: sqlite3.Connection) -> str:
    rows = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name").fetchall()
    return "".join(f"{sql};\n\n" for (sql,) in rows)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], str]]:
    made: list[str] = []

    def make(files: dict[str, str]) -> str:
        name = f"room_of_test_{len(made)}_{tmp_path.name}".replace("-", "_")
        (tmp_path / name / "migrations").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [room for room in ROOMS if (ROOT / room.rpartition(".")[2] / "schema.sql").exists()])
def test_schema_is_what_the_migrations_make(name: str, tmp_path: Path) -> None:
    """A room's `schema.sql`, which people read, is the result of all its migrations."""
    connection = open_writer(tmp_path / "a.db", name)
    written = ROOT / name.rpartition(".")[2] / "schema.sql"
    assert written.read_text() == schema(connection)
    connection.close()


def test_each_migration_is_applied_once(room: Callable[[dict[str, str]], str], tmp_path: Path) -> None:
    """An upgrade applies what is new, in order."""
    first = room({"migrations/0001_pre_one.sql": "CREATE TABLE one (a);"})
    open_writer(tmp_path / "a.db", first).close()
    second = room({"migrations/0001_pre_one.sql": "CREATE TABLE one (a);", "migrations/0002_post_two.sql": "-- two\nCREATE TABLE two (a); DROP TABLE one;"})
    connection = open_writer(tmp_path / "a.db", second)
    assert schema(connection) == "CREATE TABLE two (a);\n\n"
    connection.close()
    with pytest.raises(SchemaMismatch, match=r"at migration 2; this version knows 1"):
        open_writer(tmp_path / "a.db", first)
    with pytest.raises(SchemaMismatch, match="install the version"):
        open_reader(tmp_path / "a.db", first)


def test_a_migration_that_fails_leaves_nothing(room: Callable[[dict[str, str]], str], tmp_path: Path) -> None:
    """Half a migration is none."""
    name = room({"migrations/0001_pre_one.sql": "CREATE TABLE one (a); CREATE TABLE one (b);"})
    with pytest.raises(Exception, match="already exists"):
        open_writer(tmp_path / "a.db", name)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert schema(connection) == ""
    connection.close()


def test_a_reader_does_not_migrate(room: Callable[[dict[str, str]], str], tmp_path: Path) -> None:
    """A reader that is ahead of the writer waits for it instead of changing anything."""
    open_writer(tmp_path / "a.db", room({"migrations/0001_pre_one.sql": "CREATE TABLE one (a);"})).close()
    ahead = room({"migrations/0001_pre_one.sql": "CREATE TABLE one (a);", "migrations/0002_pre_two.sql": "CREATE TABLE two (a);"})
    with pytest.raises(SchemaMismatch, match="start its writer first"):
        open_reader(tmp_path / "a.db", ahead)


@pytest.mark.parametrize("files", [["0002_pre_a.sql"], ["0001_pre_a.sql", "0003_pre_b.sql"], ["1_pre_a.sql"], ["0001_maybe_a.sql"]])
def test_names_and_numbers_are_checked(files: list[str], room: Callable[[dict[str, str]], str]) -> None:
    """A gap, a wrong name: refused before anything is applied."""
    with pytest.raises(ValueError, match=r"must be (named|numbered)"):
        migrations.of_room(room({f"migrations/{file}": "" for file in files}))


def test_a_statement_ends_in_a_semicolon() -> None:
    """The last statement of a script is not lost for want of a semicolon; triggers and texts with semicolons are one statement."""
    trigger = "CREATE TRIGGER t BEFORE DELETE ON a BEGIN SELECT 1; SELECT ';'; END;"
    assert migrations.statements(f"-- first; really\nSELECT ';';\n{trigger}\n-- end\n") == ["-- first; really\nSELECT ';';", trigger]
    with pytest.raises(ValueError, match="without a semicolon"):
        migrations.statements("SELECT 1; SELECT 2")


@pytest.mark.parametrize("name", ROOMS)
def test_every_query_can_be_prepared(name: str, tmp_path: Path) -> None:
    """Each named query is one statement that fits the schema."""
    connection = open_writer(tmp_path / "a.db", name)
    for statement in queries.load(name).values():
        named = re.findall(r":([a-z_]+)", statement)
        connection.execute(f"EXPLAIN {statement}", dict.fromkeys(named) if named else [None] * statement.count("?"))
    connection.close()


@pytest.mark.parametrize(
    "text", ["SELECT 1;", "-- a: no full stop\nSELECT 1;", "-- a: One.\nSELECT 1;\n-- a: Two.\nSELECT 2;", "-- a: One.\n\n-- b: Two.\nSELECT 1;"]
)
def test_queries_without_a_sentence_are_refused(text: str, room: Callable[[dict[str, str]], str]) -> None:
    """Text without a heading, a name used twice, a query without text."""
    with pytest.raises(ValueError, match=r"must begin with|named twice|empty"):
        queries.load(room({"queries.sql": text}))
