from __future__ import annotations

import asyncio

import anyio
import pytest

from rayvisor._runtime.deadlines import bounded, outlast


async def test_what_is_done_in_time_gives_its_result_or_its_error() -> None:
    async def give() -> int:
        return 7

    async def fail() -> int:
        raise KeyError("x")

    async with anyio.create_task_group() as tasks:
        assert await bounded(tasks, give, 1.0, "give") == 7
        with pytest.raises(KeyError):
            await bounded(tasks, fail, 1.0, "fail")


async def test_a_deadline_holds_though_the_call_ignores_its_cancellation() -> None:
    release = anyio.Event()

    async def resist() -> None:
        with anyio.CancelScope(shield=True):
            await release.wait()

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(60), pytest.raises(TimeoutError, match=r"resist was not done within 0\.01 s"):
            await bounded(tasks, resist, 0.01, "resist", unwind=0.02)
        release.set()


async def test_who_is_cancelled_while_waiting_takes_the_call_along() -> None:
    cancelled = anyio.Event()

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.01):
            await bounded(tasks, wait, 60.0, "wait")
        with anyio.fail_after(60):
            await cancelled.wait()


async def test_outlasting_survives_scopes_and_cancelled_tasks_and_tells_of_them() -> None:
    event = anyio.Event()
    told: list[int] = []
    result: list[BaseException | None] = []

    async def wait() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            result.append(await outlast(event, lambda: told.append(1)))

    async def some_turns() -> None:
        for _ in range(20):  # a cancelled scope comes back at each turn of the loop
            await asyncio.sleep(0)

    task = asyncio.create_task(wait())
    for _ in range(2):
        await some_turns()
        task.cancel()
    await some_turns()
    assert not task.done()
    event.set()
    await asyncio.wait([task], timeout=60)
    assert told == [1, 1]
    assert isinstance(result[0], asyncio.CancelledError)
