"""One field of one event of a copied export, changed: what the verification must find, and where."""

import json
import re
from pathlib import Path

_LEAF = b'{"hash":'
_VERDICT = re.compile(rb'"decision":"(hold|deny)"')


def alter(export: Path, copy: Path) -> int:
    """Writes `copy` with the last refused or held action turned into an allowed one, as somebody with something to hide would, and returns that
    event's sequence number. ValueError when the export has no such event."""
    lines = export.read_bytes().splitlines(keepends=True)
    for number in reversed(range(len(lines))):
        line = lines[number]
        if line.startswith(_LEAF) and b'"kind":"action.decided"' in line and _VERDICT.search(line):
            sequence = int(json.loads(line)["leaf"]["seq"])
            lines[number] = _VERDICT.sub(b'"decision":"allow"', line, count=1)
            copy.write_bytes(b"".join(lines))
            return sequence
    raise ValueError(f"{export} has no action that was refused or held; the story was not told to its end")
