"""What the worker writes to standard error, at a bounded rate: an agent that finds out how to make us complain may not fill the operator's disk with it.
What is left out is counted, and told with the next line that is written."""

import logging
import sys
import time
from collections.abc import Callable

from bailiwick.gateway.runs import Rate

LINES_BURST = 20.0
LINES_PER_SECOND = 0.2  # a complaint is a mistake of ours, with a traceback: one in five seconds says enough

Unraisable = Callable[["sys.UnraisableHookArgs"], object]


class Complaints(logging.Filter):
    """One for the process: a filter for its log, and a hook for what Python cannot raise to anybody."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._rate = Rate.of(LINES_BURST, LINES_PER_SECOND)

    def install(self) -> None:
        """For every line there will be: on the handlers, since a logger's filter does not see what its children log."""
        for handler in (*logging.getLogger().handlers, logging.lastResort):
            if handler is not None:
                handler.addFilter(self)
        sys.unraisablehook = self.hook(sys.unraisablehook)

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._rate.take(self._now()):
            return False
        if suppressed := self._rate.told():
            record.msg, record.args = f"{record.getMessage()} ({suppressed} complaints before this one were not written)", ()
        return True

    def hook(self, hook: Unraisable) -> Unraisable:
        """Without CPython's own complaint about a server name that is not ASCII: the client gets its alert, and the record its line."""

        def tell(unraisable: "sys.UnraisableHookArgs") -> object:
            if issubclass(unraisable.exc_type, UnicodeDecodeError) or not self._rate.take(self._now()):
                return None
            return hook(unraisable)

        return tell
