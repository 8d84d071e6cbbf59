"""What the store raises: the machine's fault, never the caller's."""

from bailiwick.kernel.errors import BackendError


class StoreError(BackendError):
    """The database refused: disk full, damage, locked, not there. Nothing of the transaction is written."""


class SchemaMismatch(StoreError):
    """The database and the code do not know the same schema."""
