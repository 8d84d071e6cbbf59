"""A file's content. For development: the value lies on a disk.

The broker runs as its own uid and may not open the starter's file, so it is opened before the uid is dropped and read through that descriptor. A file
that is written in place shows its new content at once. One that is replaced (renamed over, as Kubernetes and most editors do) is opened again by its
path if the broker's uid may; if not, the value is refused, not served stale: `bailiwick` must be started again.
"""

import os
import stat
from pathlib import Path

from bailiwick.broker.sources.port import SECRET_BYTES_MAX, SourceError, accepted
from bailiwick.kernel.secret import Secret

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # O_NONBLOCK: a FIFO must not keep us waiting for its writer


class FileSource:
    """Owns the descriptor it keeps, until `close`."""

    def __init__(self, credential: str, path: Path) -> None:
        self._credential = credential
        self._path = path
        self._kept: int | None = None

    def open(self) -> None:
        """With the starter's rights. A file that is not there yet is not an error before it is asked for."""
        self.close()
        try:
            self._kept = os.open(self._path, _FLAGS)
        except OSError:
            self._kept = None

    def close(self) -> None:
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None

    async def fetch(self) -> Secret:
        try:
            descriptor = os.open(self._path, _FLAGS)
        except PermissionError:
            return self._read_kept()
        except OSError as error:
            raise self._error(f"cannot be opened: {error.strerror}; create it, or correct the credential's `path`") from error
        try:
            return self._read(descriptor)
        finally:
            os.close(descriptor)

    def _read_kept(self) -> Secret:
        if self._kept is None:
            raise self._error("may not be read by the broker and was not there when bailiwick was started; start bailiwick again")
        if os.fstat(self._kept).st_nlink == 0:
            raise self._error("was replaced since bailiwick was started, and the new one may not be read by the broker; start bailiwick again")
        return self._read(self._kept)

    def _read(self, descriptor: int) -> Secret:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise self._error("is not a regular file; must be one that holds the secret and nothing else")
        if others := stat.S_IMODE(status.st_mode) & 0o007:
            raise self._error(f"is open to everybody (mode ends in {others:o}); run: chmod o-rwx {self._path}")
        try:
            raw = os.pread(descriptor, SECRET_BYTES_MAX + 3, 0)  # a line end more than may be, and one byte to notice that there is more
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}; see to its disk") from error
        return accepted(raw, credential=self._credential, place=f"the file {self._path}")

    def _error(self, what: str) -> SourceError:
        return SourceError(f"credential {self._credential!r}: the file {self._path} {what}")
