from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from rayvisor._backends.ray import calls as calls_module
from rayvisor._backends.ray.calls import CallThreads, Lane
from rayvisor._backends.ray.errors import RayCallTimeout
from tests.waiting import until, until_now


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
async def calls(gate: threading.Event) -> AsyncIterator[CallThreads]:
    calls = CallThreads(2, user_size=2)
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


async def test_the_result_for_a_caller_that_was_cancelled_meanwhile_is_undone(calls: CallThreads) -> None:
    undone: list[int] = []
    loop = asyncio.get_running_loop()
    began = threading.Event()

    def create() -> int:
        began.wait()
        return 7

    waiting = asyncio.create_task(calls.run("create", create, timeout=60, undo=undone.append))
    await until(calls.under_way)
    # The loop is held up until the result is there, and is cancelled before the caller has seen it.
    loop.call_soon(began.set)
    loop.call_soon(_until_idle, calls)
    loop.call_soon(waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: undone)
    assert undone == [7]


def _until_idle(calls: CallThreads) -> None:
    until_now(lambda: not calls.under_way())


async def test_the_result_for_a_caller_that_is_cancelled_in_the_instant_it_comes_is_undone(
    calls: CallThreads, gate: threading.Event
) -> None:
    undone: list[int] = []

    def create() -> int:
        gate.wait()
        return 7

    waiting = asyncio.create_task(calls.run("create", create, timeout=60, undo=undone.append))
    await until(calls.under_way)
    loop = asyncio.get_running_loop()

    def come() -> None:
        gate.set()
        _until_idle(calls)
        loop.call_soon(waiting.cancel)  # behind the news of the result, before the caller runs

    loop.call_soon(come)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: undone)
    assert undone == [7]


def test_a_result_that_comes_when_the_loop_has_ended_is_undone(gate: threading.Event) -> None:
    undone: list[int] = []
    calls = CallThreads(1)

    def create() -> int:
        gate.wait()
        return 7

    async def give_up() -> None:
        with pytest.raises(RayCallTimeout):
            await calls.run("create", create, timeout=0.05, undo=undone.append)

    asyncio.run(give_up())
    gate.set()
    until_now(lambda: undone)
    assert undone == [7]
    calls.close()


async def test_every_result_goes_either_to_the_caller_or_to_undo(calls: CallThreads) -> None:
    got: list[int] = []
    undone: list[int] = []

    def create(number: int) -> int:
        time.sleep(0.002)
        return number

    async def one(number: int) -> None:
        call = partial(create, number)
        with contextlib.suppress(RayCallTimeout):
            got.append(await calls.run("create", call, timeout=0.002 * (number % 4), undo=undone.append))

    made: list[int] = []
    for number in range(0, 200, 2):
        tasks = [asyncio.create_task(one(each)) for each in (number, number + 1)]
        made.extend((number, number + 1))
        await asyncio.sleep(0.001 * (number % 5))
        tasks[number % 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: not calls.under_way())
    await calls.run("last", lambda: None, timeout=60)
    assert not set(got) & set(undone)
    assert set(got) | set(undone) <= set(made)
    assert len(got) == len(set(got))
    assert len(undone) == len(set(undone))


class _Slow:
    """A lock, or condition, that a thread other than the event loop's gets a moment later."""

    def __init__(self, guarded: Any) -> None:
        self._guarded = guarded
        self._loop_thread = threading.get_ident()

    def __enter__(self) -> Any:
        if threading.get_ident() != self._loop_thread:
            time.sleep(0.02)
        return self._guarded.__enter__()

    def __exit__(self, *raised: object) -> None:
        self._guarded.__exit__(*raised)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guarded, name)


async def test_a_call_never_waits_behind_a_stuck_one_while_a_thread_can_be_had(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_lock() -> _Slow:
        return _Slow(threading.Lock())

    def slow_condition() -> _Slow:
        return _Slow(threading.Condition())

    slow = {**vars(threading), "Lock": slow_lock, "Condition": slow_condition}
    monkeypatch.setattr(calls_module, "threading", SimpleNamespace(**slow))
    calls = CallThreads(2)
    await calls.run("quick", lambda: None, timeout=60)
    await asyncio.sleep(0.1)  # its thread is idle now
    stuck = asyncio.create_task(calls.run("stuck", gate.wait, timeout=60))
    await asyncio.sleep(0.01)  # the thread takes this call, and is about to say so
    try:
        assert await calls.run("behind it", lambda: 1, timeout=5) == 1
    finally:
        gate.set()
        await stuck
        calls.close()


async def test_user_code_that_holds_every_thread_of_its_own_does_not_hold_up_a_kill(
    calls: CallThreads, gate: threading.Event
) -> None:
    hooks = [
        asyncio.create_task(calls.run(f"hook {number}", gate.wait, timeout=3600, lane=Lane.USER))
        for number in range(10)
    ]
    await until(lambda: len(calls.under_way(Lane.USER)) == 2)
    began = time.monotonic()
    assert await calls.run("ray.kill", lambda: "killed", timeout=10) == "killed"
    assert await calls.run("create", lambda: "created", timeout=10, lane=Lane.CREATE) == "created"
    assert time.monotonic() - began < 10
    assert not any(hook.done() for hook in hooks)
    with pytest.raises(RayCallTimeout, match="also under way: hook 0, hook 1"):
        await calls.run("one more hook", lambda: None, timeout=0.05, lane=Lane.USER)
    gate.set()
    await asyncio.gather(*hooks)


async def test_creations_that_hang_do_not_hold_up_a_kill(calls: CallThreads, gate: threading.Event) -> None:
    hanging = [
        asyncio.create_task(calls.run("create", gate.wait, timeout=60, lane=Lane.CREATE)) for _ in range(5)
    ]
    await until(lambda: len(calls.under_way(Lane.CREATE)) == 2)
    assert await calls.run("ray.kill", lambda: "killed", timeout=10) == "killed"
    gate.set()
    await asyncio.gather(*hanging)


async def test_once_closed_the_threads_end_and_further_calls_are_refused(calls: CallThreads) -> None:
    thread = await calls.run("first", threading.current_thread, timeout=60)
    assert thread.is_alive()
    calls.close()
    await until(lambda: not thread.is_alive())
    with pytest.raises(RuntimeError, match="second: the connection to Ray is closed"):
        await calls.run("second", lambda: None, timeout=60)
    calls.post("third", lambda: None)  # no caller waits for it: the log has the refusal


async def test_a_posted_call_that_fails_does_not_end_its_thread(calls: CallThreads) -> None:
    def fail() -> None:
        raise OSError("no")

    for _ in range(3):
        calls.post("fails", fail)
    assert await calls.run("after them", lambda: 1, timeout=60) == 1
