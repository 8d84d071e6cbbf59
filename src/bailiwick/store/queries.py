"""Named queries: a room's `queries.sql` holds every statement it runs, each under a line `-- name: a sentence that says what it answers`."""

import contextlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

_HEADING = re.compile(r"^-- ([a-z][a-z0-9_]*): (\S.*\.)$", re.MULTILINE)


@cache
def load(room: str) -> Mapping[str, str]:
    """Name to statement, of a package such as `bailiwick.record`. ValueError for text without a heading, a query without text, a name used twice."""
    text = (resources.files(room) / "queries.sql").read_text("utf-8")
    before, *parts = _HEADING.split(text)
    if before.strip():
        raise ValueError(f"queries.sql of {room} begins with {before.strip()[:60]!r}; must begin with `-- name: sentence.`")
    found: dict[str, str] = {}
    for name, _sentence, statement in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if name in found or not statement.strip():
            raise ValueError(f"query {name} of {room} is {'named twice' if name in found else 'empty'}")
        found[name] = statement.strip().rstrip(";")
    return MappingProxyType(found)


def _read_ahead() -> None:
    """Every room's queries, while we import: a process that has dropped its uid may not reach these files any more."""
    for entry in resources.files("bailiwick").iterdir():
        if (entry / "queries.sql").is_file():
            with contextlib.suppress(ValueError):  # raised again to whoever asks for that room's
                load(f"bailiwick.{entry.name}")


_read_ahead()
