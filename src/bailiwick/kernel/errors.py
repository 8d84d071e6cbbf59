"""Errors name their culprit, and say value, expectation and way out: lower case, no full stop."""


class BailiwickError(Exception):
    """Anything of ours that went wrong. `code` is stable and may be matched on; the text is for people and holds no secret."""

    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class CallerError(BailiwickError):
    """What was asked cannot be done as asked: a bad value, an unknown name, a state that forbids it. Asking differently may help."""

    code = "bad-request"


class NotFound(CallerError):
    code = "not-found"


class Conflict(CallerError):
    """The thing is in a state that forbids what was asked."""

    code = "conflict"


class Forbidden(CallerError):
    """The caller is known and may not do this."""

    code = "forbidden"


class PeerError(BailiwickError):
    """The other end of a connection (an agent, an upstream, a process of ours) broke the protocol, closed or did not answer in time."""

    code = "peer"


class BackendError(BailiwickError):
    """The machine under us failed: a sandbox, a disk, a kernel feature. Never shown as a failure of the agent."""

    code = "backend"
