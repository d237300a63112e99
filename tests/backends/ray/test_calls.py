from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from rayvisor._backends.ray.calls import CallThreads
from rayvisor._backends.ray.errors import RayCallTimeout
from tests.waiting import until


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
async def calls(gate: threading.Event) -> AsyncIterator[CallThreads]:
    calls = CallThreads(2)
    yield calls
    gate.set()
    calls.close()


async def test_a_call_that_is_not_answered_in_time_is_named_by_the_error(
    calls: CallThreads, gate: threading.Event
) -> None:
    with pytest.raises(RayCallTimeout, match=r"ray\.stuck was not answered within 0\.05 s") as raised:
        await calls.run("ray.stuck", gate.wait, timeout=0.05)
    assert raised.value.call == "ray.stuck"
    assert isinstance(raised.value, TimeoutError)


async def test_the_loop_goes_on_while_calls_block(calls: CallThreads, gate: threading.Event) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)
            turns += 1

    counting = asyncio.create_task(count())
    with pytest.raises(RayCallTimeout):
        await calls.run("ray.stuck", gate.wait, timeout=0.5)
    counting.cancel()
    assert turns > 5


async def test_a_call_given_up_still_holds_its_thread_so_that_the_bound_stays_one(
    calls: CallThreads, gate: threading.Event
) -> None:
    for name in ("first", "second"):
        with pytest.raises(RayCallTimeout):
            await calls.run(name, gate.wait, timeout=0.05)
    ran = threading.Event()
    with pytest.raises(RayCallTimeout, match="also under way: first, second"):
        await calls.run("third", ran.set, timeout=0.05)
    gate.set()
    assert await calls.run("fourth", lambda: 4, timeout=60) == 4
    assert not ran.is_set()  # nobody waited for it any more when its turn came


async def test_what_comes_too_late_is_undone(calls: CallThreads, gate: threading.Event) -> None:
    undone: list[int] = []
    known = asyncio.Event()
    loop = asyncio.get_running_loop()

    def create() -> int:
        gate.wait()
        return 7

    def undo(result: int) -> None:
        undone.append(result)
        loop.call_soon_threadsafe(known.set)

    with pytest.raises(RayCallTimeout):
        await calls.run("create", create, timeout=0.05, undo=undo)
    gate.set()
    await asyncio.wait_for(known.wait(), 60)
    assert undone == [7]


async def test_what_a_call_raises_is_raised_to_the_waiter(calls: CallThreads) -> None:
    def fail() -> None:
        raise KeyError("name")

    with pytest.raises(KeyError, match="name"):
        await calls.run("fail", fail, timeout=60)


async def test_cancelling_the_waiter_gives_the_call_up(calls: CallThreads, gate: threading.Event) -> None:
    waiting = asyncio.create_task(calls.run("stuck", gate.wait, timeout=60))
    await until(calls.under_way)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
