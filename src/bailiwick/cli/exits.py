"""Exit statuses; docs/reference/exit-codes.md is their page and a test holds them together."""

from enum import IntEnum

from bailiwick.kernel.errors import BailiwickError


class Exit(IntEnum):
    OK = 0
    AGENT_FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    REFUSED = 4
    BROKEN = 5
    UNREACHABLE = 6
    NOT_VERIFIED = 7
    STOPPED = 8
    INTERRUPTED = 130


class Unreachable(BailiwickError):
    """Nothing answers on the API's socket."""

    code = "unreachable"


class Refused(BailiwickError):
    """The API said no. `code` is the problem's."""

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.status = status


class Stop(Exception):
    def __init__(self, status: Exit, message: str = "") -> None:
        super().__init__(message)
        self.status = status


_BY_CAUSE = {"refused": Exit.REFUSED, "sandbox": Exit.BROKEN, "lost": Exit.BROKEN}


def of_run(cause: str, status: int | None) -> Exit:
    """The exit status of a command that watched a run to its end."""
    if cause == "exited":
        return Exit.OK if status == 0 else Exit.AGENT_FAILED
    return _BY_CAUSE.get(cause, Exit.STOPPED)


def of_error(error: BailiwickError) -> Exit:
    match error:
        case Unreachable():
            return Exit.UNREACHABLE
        case Refused(status=status):
            return Exit.REFUSED if status < 500 else Exit.BROKEN
    return {"invalid": Exit.CONFIGURATION, "backend": Exit.BROKEN, "peer": Exit.BROKEN, "internal": Exit.BROKEN}.get(error.code, Exit.REFUSED)
