"""The port: what a source of credentials does for the broker, and how it fails."""

from typing import Protocol

from bailiwick.kernel.errors import BackendError
from bailiwick.kernel.secret import Secret

SECRET_BYTES_MAX = 16 * 1024  # a header field; servers take 8 to 64 KiB of all fields together


class SourceError(BackendError):
    """A source has no value to give. The text names the credential, what is missing and the way out, and never holds a value."""

    code = "source"


class CredentialSource(Protocol):
    async def fetch(self) -> Secret:
        """The value as it is now: not empty, at most SECRET_BYTES_MAX, without a line end at its end. Raises SourceError."""
        ...


def accepted(raw: bytes, *, credential: str, place: str) -> Secret:
    """The value a source found, held to the port's promise."""
    value = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise SourceError(f"credential {credential!r}: {place} is empty; must hold the secret")
    if len(value) > SECRET_BYTES_MAX:
        raise SourceError(f"credential {credential!r}: {place} holds more than {SECRET_BYTES_MAX} bytes; must be one header field's value")
    return Secret(value)
