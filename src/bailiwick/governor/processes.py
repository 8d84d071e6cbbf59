"""The state of our processes: what their parent wrote down, and whether each answers the governor."""

import json
from collections.abc import Mapping

from bailiwick.governor.views import ProcessView
from bailiwick.kernel.errors import BackendError
from bailiwick.kernel.layout import Layout


def read_processes(layout: Layout, up: Mapping[str, bool]) -> list[ProcessView]:
    """`up` says of a process's name whether it answers; who is not in it is not asked anything. BackendError when the parent's file is not there."""
    try:
        listed = json.loads((layout.sockets / "processes.json").read_text())
    except (OSError, ValueError) as error:
        raise BackendError(f"state of the processes is not known: {error}") from error
    return [
        ProcessView(
            name=entry["name"],
            state="down" if entry["pid"] is None else "up" if up.get(entry["name"], True) else "starting",
            pid=entry["pid"],
            uid=entry["uid"],
            restarts=entry["restarts"],
            detail=entry["detail"],
        )
        for entry in listed
    ]
