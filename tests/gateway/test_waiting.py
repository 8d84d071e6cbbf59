import asyncio
import gc
from typing import Any

import pytest

from bailiwick.gateway.waiting import Pending, Tasks, drive


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


def test_what_is_settled_is_not_waited_for() -> None:
    """A coroutine runs through in one go when nothing it awaits is open, and goes on the moment that what it awaits is settled."""
    seen: list[object] = []
    ready: Pending[int] = Pending()
    ready.settle(1)
    ready.settle(2)
    later: Pending[str] = Pending()

    async def work() -> None:
        seen.append(await ready)
        seen.append(await later)

    drive(work(), seen.append)
    assert seen == [1]
    later.settle("x")
    assert seen == [1, "x"]


def test_a_failure_is_raised_where_it_is_awaited_and_told_if_nobody_takes_it() -> None:
    """`fail` raises in the coroutine; what the coroutine raises is handed to its owner."""
    seen: list[BaseException] = []
    pending: Pending[None] = Pending()

    async def work() -> None:
        await pending

    drive(work(), seen.append)
    pending.fail(ValueError("no"))
    pending.settle(None)
    assert [str(error) for error in seen] == ["no"]


def test_a_driven_coroutine_leaves_no_cycle() -> None:
    """An exchange's memory is free when it is over, without the collector."""

    async def work(pending: Pending[None]) -> None:
        await pending

    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            pending: Pending[None] = Pending()
            drive(work(pending), print)
            pending.settle(None)
        del pending
        assert gc.collect() < 20
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_tasks_are_held_and_end_together() -> None:
    """A task settles what waits for it, with its value, its error, or its cancellation."""
    tasks = Tasks(asyncio.get_running_loop())
    seen: list[object] = []

    async def value() -> int:
        return 7

    async def error() -> int:
        raise OSError("broken")

    async def never() -> int:
        return await asyncio.get_running_loop().create_future()

    async def wait(work: Pending[int]) -> None:
        seen.append(await work)

    for work in (value(), error(), never()):
        drive(wait(tasks.start(work)), seen.append)
    async with asyncio.timeout(10):
        while len(tasks) > 1:
            await asyncio.sleep(0)
        tasks.cancel()
        while tasks:
            await asyncio.sleep(0)
    assert seen[0] == 7
    assert [type(part) for part in seen[1:]] == [OSError, asyncio.CancelledError]
