"""How the data path waits: one coroutine for each exchange, driven by callbacks, so that what need not wait costs no task and no turn of the loop.

`Pending` is what such a coroutine awaits. `drive` runs it as far as it goes and is called again, directly, by whoever settles what it waits for. What
needs a real task (a message to another process) runs in `Tasks`, the worker's own set, and settles a `Pending` when it ends.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A value that comes later, once. One waiter."""

    __slots__ = ("_error", "_resume", "_value", "settled")

    def __init__(self) -> None:
        self.settled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._resume: Callable[[], None] | None = None

    def settle(self, value: T) -> None:
        """The first word counts."""
        if not self.settled:
            self.settled, self._value = True, value
            self._wake()

    def fail(self, error: BaseException) -> None:
        if not self.settled:
            self.settled, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def __await__(self) -> "Generator[Pending[T], None, T]":
        if not self.settled:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # settled without an error: it is a T


class _Drive:
    """A class and not a closure: one that names itself would be a cycle, and garbage, with every exchange."""

    __slots__ = ("_coroutine", "_failed")

    def __init__(self, coroutine: "Coroutine[Pending[Any], None, None]", failed: Callable[[BaseException], None]) -> None:
        self._coroutine = coroutine
        self._failed = failed

    def step(self) -> None:
        try:
            pending = self._coroutine.send(None)
        except StopIteration:
            return
        except BaseException as error:  # noqa: BLE001 - handed on whole to the one who answers for it
            self._failed(error)
            return
        pending._resume = self.step


def drive(coroutine: "Coroutine[Pending[Any], None, None]", failed: Callable[[BaseException], None]) -> None:
    """Runs until the coroutine waits or ends; `failed` hears what it raised."""
    _Drive(coroutine, failed).step()


class Tasks:
    """The worker's set of tasks on the data path: each is held, each is ended with the set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, T]) -> Pending[T]:
        """What the work returns or raises."""
        pending: Pending[T] = Pending()
        task = self._loop.create_task(work)
        self._running.add(task)

        def ended(done: "asyncio.Task[T]") -> None:
            self._running.discard(done)
            if done.cancelled():
                pending.fail(asyncio.CancelledError())
            elif (error := done.exception()) is not None:
                pending.fail(error)
            else:
                pending.settle(done.result())

        task.add_done_callback(ended)
        return pending

    def cancel(self) -> None:
        for task in tuple(self._running):
            task.cancel()
