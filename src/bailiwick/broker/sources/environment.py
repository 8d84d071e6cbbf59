"""A variable of the starter's environment. For development: whoever may read /proc/PID/environ of the starter's shell has it as well."""

import os
from collections.abc import Collection

from bailiwick.broker.sources.port import SourceError, accepted
from bailiwick.kernel.errors import BackendError
from bailiwick.kernel.limits import MIB
from bailiwick.kernel.secret import Secret

_ENVIRONMENT_BYTES_MAX = 16 * MIB  # execve(2) takes a quarter of the stack limit, 2 MiB by default
_READ_BYTES = 256 * 1024


class EnvironmentSource:
    def __init__(self, credential: str, variable: str, value: Secret | None) -> None:
        self._credential = credential
        self._variable = variable
        self._value = value

    async def fetch(self) -> Secret:
        if self._value is None:
            raise SourceError(
                f"credential {self._credential!r}: the variable {self._variable} is not set where bailiwick was started; set it and start bailiwick again"
            )
        return accepted(self._value.reveal(), credential=self._credential, place=f"the variable {self._variable}")


def read_variables(descriptor: int, wanted: Collection[str]) -> dict[str, Secret]:
    """The wanted variables of an environment as proc(5) writes it. Read from the start whatever the descriptor's position, which a restarted broker
    shares with its predecessor; everything else is dropped."""
    raw = bytearray()
    try:
        while chunk := os.pread(descriptor, _READ_BYTES, len(raw)):
            raw += chunk
            if len(raw) > _ENVIRONMENT_BYTES_MAX:
                raise BackendError(f"the handed over environment is larger than {_ENVIRONMENT_BYTES_MAX} bytes; start bailiwick from a smaller one")
    except OSError as error:
        raise BackendError(f"the handed over environment cannot be read: {error.strerror}; start bailiwick again") from error
    names = {name.encode(): name for name in wanted}
    found: dict[str, Secret] = {}
    for entry in bytes(raw).split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name in names:
            found.setdefault(names[name], Secret(value))  # getenv(3) takes the first as well
    raw[:] = bytes(len(raw))
    return found
