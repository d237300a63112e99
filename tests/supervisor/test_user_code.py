"""Whatever the user's code raises is a fault of that code: the tree goes on, and knows the root cause."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._core.protocol.causes import traceback_text
from rayvisor._runtime.children.actor_health import prove
from rayvisor._runtime.children.adopted import ended_in_order
from rayvisor._runtime.deadlines import UserCodeError, bounded
from rayvisor._runtime.served_starts import ServedStarts
from rayvisor.specs import ActorHooks
from rayvisor.specs.limits import StallLimits
from rayvisor.testing import Puppets, wait_for_state

MOST_TEXT = 4000


class PanicException(BaseException):
    """Stands in for the exception that PyO3 raises when Rust code panics: it is no `Exception`."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise PanicException("formatting panicked")

    __repr__ = __str__


class MutePanic(BaseException):
    def __str__(self) -> str:
        raise ValueError("formatting failed")


def cancelled_by_a_lost_peer() -> NoReturn:
    raise asyncio.CancelledError from ConnectionError("the peer is gone")


def raising(error: BaseException | type[BaseException]) -> Callable[[], NoReturn]:
    def raise_it() -> NoReturn:
        raise error

    return raise_it


def cancels_its_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "panic": (raising(PanicException("rust")), "PanicException: rust"),
    "mute": (raising(MuteError()), "MuteError: <no message: __str__ raised PanicException>"),
    "mute panic": (raising(MutePanic()), "MutePanic: <no message: __str__ raised ValueError>"),
    "group": (
        raising(BaseExceptionGroup("two", [PanicException("a"), ValueError("b")])),
        "PanicException: a",
    ),
    "exit": (raising(SystemExit(3)), "SystemExit: 3"),
    "generator": (raising(GeneratorExit()), "GeneratorExit"),
    "cancelled": (raising(asyncio.CancelledError()), "CancelledError"),
    "lost peer": (cancelled_by_a_lost_peer, "ConnectionError: the peer is gone"),
    "huge": (raising(ValueError("x" * 3_000_000)), "ValueError: xxx"),
}
every_fault = pytest.mark.parametrize(("fail", "root"), FAULTS.values(), ids=FAULTS.keys())


def fault_of(records: list[r.Record]) -> rv.Fault:
    (fault,) = [record.fault for record in records if isinstance(record, r.FaultSeen)]
    assert len(fault.traceback) <= 10 * MOST_TEXT
    assert all(len(cause.message) <= MOST_TEXT for cause in fault.causes)
    return fault


@every_fault
@pytest.mark.parametrize("pause", [None, 0.0])
async def test_a_coroutine_may_raise_anything(
    fail: Callable[..., object], root: str, pause: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [True]

    async def work() -> None:
        if runs:
            runs.pop()
            if pause is not None:
                await anyio.sleep(pause)
            fail()
        await anyio.sleep_forever()

    supervisor = rv.Supervisor(rv.SupervisorSpec(children=[rv.coroutine("a", work)]))
    watch = supervisor.watch()
    async with supervisor as sup:
        await wait_for_state(sup, "a", "ALIVE.SERVING", incarnation=2)
    assert str(fault_of([x async for x in watch]).root).startswith(root)
    assert max(len(record.getMessage()) for record in caplog.records) < 12 * MOST_TEXT


@every_fault
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_of_a_subtree_may_raise_anything(
    fail: Callable[..., object], root: str, *, is_async: bool
) -> None:
    async def awaited() -> rv.SupervisorSpec:
        fail()
        raise AssertionError

    def called() -> rv.SupervisorSpec:
        fail()
        raise AssertionError

    async with rv.Supervisor(rv.SupervisorSpec(children=[])) as sup:
        watch = sup.watch()
        with pytest.raises(rv.ChildStartError) as raised:
            await sup.start_child(rv.subtree("s", awaited if is_async else called))
        assert len(str(raised.value)) < 3 * MOST_TEXT
        assert await sup.which_children() == []
    assert str(fault_of([x async for x in watch]).root).startswith(root)


class Strategy:
    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail

    def plan(self, failure: Any, siblings: Any) -> Any:
        del failure, siblings
        yield self.fail()


@every_fault
async def test_a_strategy_may_raise_anything(fail: Callable[..., object], root: str) -> None:
    del root
    puppets = Puppets()
    spec = rv.SupervisorSpec(strategy=Strategy(fail), children=[puppets.child("a"), puppets.child("b")])
    async with rv.Supervisor(spec) as sup:
        watch = sup.watch()
        puppets.crash("a")
        await wait_for_state(sup, "a", "ALIVE.SERVING", incarnation=2)
    (record,) = [x async for x in watch if isinstance(x, r.StrategyFailed)]
    assert len(record.problem) < 2 * MOST_TEXT


@every_fault
async def test_a_lifecycle_hook_may_raise_anything(
    fail: Callable[..., object], root: str, caplog: pytest.LogCaptureFixture
) -> None:
    del root
    puppets = Puppets()
    supervisor = rv.Supervisor(rv.SupervisorSpec(children=[puppets.child("a")]))
    supervisor.on_enter("SERVING", lambda _: fail(), chart="actor")
    watch = supervisor.watch()
    async with supervisor as sup:
        assert [child.running for child in await sup.which_children()] == [True]
    (record,) = [x async for x in watch if isinstance(x, r.HookFailed)]
    assert len(record.error) < 2 * MOST_TEXT
    assert max(len(record.getMessage()) for record in caplog.records) < 12 * MOST_TEXT


@every_fault
async def test_a_bounded_call_may_raise_anything_and_its_group_goes_on(
    fail: Callable[..., object], root: str
) -> None:
    """Gates, hooks of actors, recoveries, stops and clean-ups are called this way."""

    async def call() -> None:
        await anyio.lowlevel.checkpoint()
        fail()

    async with anyio.create_task_group() as tasks:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - of any kind, but an Exception
            await bounded(tasks, call, 60.0, "call")
        assert not tasks.cancel_scope.cancel_called
        assert root.partition(":")[0] in traceback_text(raised.value)
        assert len(traceback_text(raised.value)) <= 10 * MOST_TEXT


class Actor:
    """An actor whose hooks run here; they do nothing from the second call on."""

    name = "a"
    snapshot = SimpleNamespace(end=None)

    def __init__(self) -> None:
        self.asked = 0

    async def run(self, hook: Callable[[], object]) -> None:
        self.asked += 1
        if self.asked == 1:
            hook()

    async def terminate(self, seconds: float) -> str:
        return f"within {seconds:.0f} s"


@every_fault
async def test_a_probe_may_raise_anything_and_is_called_again(fail: Callable[..., object], root: str) -> None:
    actor: Any = Actor()
    await prove(actor, ActorHooks(probe=fail, limits=StallLimits(probe_interval=0.001)), 60.0)
    assert actor.asked == 2
    actor = Actor()
    with pytest.raises(TimeoutError, match=re.escape(root)):
        await prove(actor, ActorHooks(probe=fail, limits=StallLimits(probe_interval=9.0)), 0.05)


@every_fault
async def test_a_drain_hook_may_raise_anything_and_the_actor_is_asked_to_end(
    fail: Callable[..., object], root: str
) -> None:
    del root
    actor: Any = Actor()
    assert await ended_in_order(actor, ActorHooks(drain=fail), 60.0)


async def test_a_call_that_cancels_its_own_task_has_failed() -> None:
    async def call() -> None:
        cancels_its_own_task()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        with pytest.raises(UserCodeError, match="a cancellation that nothing requested"):
            await bounded(tasks, call, 60.0, "call")


async def test_a_call_that_answers_its_cancellation_with_another_one_ends_nothing_else() -> None:
    kept = asyncio.CancelledError()

    async def call() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise kept

    async with anyio.create_task_group() as tasks:
        with pytest.raises(TimeoutError):
            await bounded(tasks, call, 0.01, "call")
        assert not tasks.cancel_scope.cancel_called


async def test_a_function_of_a_subtree_that_is_ended_may_raise_another_cancellation() -> None:
    begun = anyio.Event()

    async def make() -> rv.SupervisorSpec:
        begun.set()
        with contextlib.suppress(BaseException):
            await anyio.sleep_forever()
        raise asyncio.CancelledError

    async with rv.Supervisor(rv.SupervisorSpec(children=[])) as sup, anyio.create_task_group() as tasks:

        async def start() -> None:
            with pytest.raises(rv.ChildStartError):
                await sup.start_child(rv.subtree("s", make))

        tasks.start_soon(start)
        await begun.wait()
        await sup.terminate_child("s")
        assert await sup.count_children() == rv.ChildCounts(1, 0, 1, 0)


async def test_a_tree_whose_own_task_is_cancelled_gives_a_reason() -> None:
    puppets = Puppets()
    supervisor = rv.Supervisor(rv.SupervisorSpec(children=[puppets.child("a")]))

    def hook(change: rv.Change) -> None:
        if change.model.incarnation > 1:  # the block has been entered
            cancels_its_own_task()

    supervisor.on_enter("SERVING", hook, chart="actor")

    async def run() -> None:
        async with supervisor:
            puppets.crash("a")
            await anyio.sleep_forever()

    with pytest.raises(rv.SupervisorGaveUpError, match="its tasks were cancelled, although nothing"):
        await run()


@pytest.mark.parametrize("method", ["__eq__", "__hash__"])
def test_a_users_argument_may_refuse_to_be_compared(method: str) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PanicException

    kind: Any = type("Argument", (), {"__hash__": lambda _: 1, method: refuse})
    served = ServedStarts()
    served.add("", (kind(),))
    assert not served.has("", (kind(),))


INTERRUPTED = """
import os, signal, sys, anyio, rayvisor as rv

def handler(*_):
    sys.exit(7)

async def work():
    os.kill(os.getpid(), signal.{name})
    for _ in range(10000):
        pass
    await anyio.sleep_forever()

async def main():
    if "{name}" == "SIGTERM":
        signal.signal(signal.SIGTERM, handler)
    async with rv.Supervisor(rv.SupervisorSpec(children=[rv.coroutine("a", work)]), handle_signals=False):
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 7), ("SIGINT", -signal.SIGINT)])
def test_what_a_signal_handler_of_the_program_raises_ends_the_program(name: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(name=name)], timeout=60, check=False, env=os.environ
    )
    assert done.returncode == status
