"""The starter's environment, which may hold secrets, and how it reaches the one process that may read it: by descriptor, never by memory.

A process that is forked inherits its parent's memory, environment block and all. So the group's parent is started with an environment of a few
harmless names, and the whole of the starter's stands in an anonymous file whose descriptor only the broker is handed.
"""

import os
from collections.abc import Mapping

KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "BAILIWICK_STATE",
    "BAILIWICK_DEBUG",
    "PYTHONPATH",
)
DESCRIPTOR = "BAILIWICK_ENVIRONMENT_FD"


def pack(environment: Mapping[bytes, bytes]) -> int:
    """An anonymous file of `NAME=value` and NUL, as in proc(5)'s environ; the descriptor is inheritable and the caller's to close."""
    descriptor = os.memfd_create("environment", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"".join(name + b"=" + value + b"\0" for name, value in environment.items()))
    os.set_inheritable(descriptor, True)
    return descriptor


def harmless(environment: Mapping[str, str], descriptor: int) -> dict[str, str]:
    """What the group's parent is started with."""
    return {name: environment[name] for name in KEPT if name in environment} | {DESCRIPTOR: str(descriptor)}
