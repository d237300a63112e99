"""The block: entering, leaving, and every way in which it can end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor.timeouts import RuntimeTimeouts

Diary = list[str]


@pytest.fixture
def diary() -> Diary:
    return []


def member(diary: Diary, name: str, ending: float = 0.0) -> Callable[..., Awaitable[None]]:
    """A child that writes down its start and, when it is cancelled, its end."""

    async def run() -> None:
        diary.append(f"+{name}")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(ending)
            diary.append(f"-{name}")

    return run


def trio(diary: Diary, **flags: object) -> rv.SupervisorSpec:
    children = [rv.coroutine(name, member(diary, name, 0.02)) for name in "abc"]
    return rv.SupervisorSpec(children=children, **flags)  # type: ignore[arg-type]  # flags as they come


ALL = ["+a", "+b", "+c", "-c", "-b", "-a"]


async def test_entering_waits_until_all_are_up_and_leaving_ends_them_in_reverse(diary: Diary) -> None:
    async def announce(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await anyio.sleep(0.05)
        diary.append("+d")
        task_status.started()
        await anyio.sleep_forever()

    spec = trio(diary)
    spec = rv.SupervisorSpec(children=[*spec.children, rv.coroutine("d", announce)])
    async with rv.Supervisor(spec) as sup:
        assert diary == ["+a", "+b", "+c", "+d"]
        assert [(x.id, x.running) for x in await sup.which_children()] == [(x, True) for x in "dcba"]
    assert diary[4:] == ["-c", "-b", "-a"]


async def test_a_failing_first_start_ends_the_others_in_reverse_and_raises_root_cause_first(
    diary: Diary,
) -> None:
    async def fail(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        del task_status
        missing = FileNotFoundError("/models/none")
        raise RuntimeError("the router could not be made") from missing

    spec = trio(diary)
    spec = rv.SupervisorSpec(intensity=5, children=[*spec.children, rv.coroutine("router", fail)])
    supervisor = rv.Supervisor(spec)
    watch = supervisor.watch()
    with pytest.raises(rv.StartFailedError) as raised:
        await supervisor.__aenter__()
    assert str(raised.value).startswith("FileNotFoundError: /models/none (router, incarnation 1, PERMANENT")
    assert raised.value.child == "router"
    assert diary == ALL
    starts = [x async for x in watch if isinstance(x, r.StateChanged) and x.child == "router"]
    assert {x.incarnation for x in starts} == {1}


async def test_giving_up_cancels_the_block_and_raises_root_cause_first(diary: Diary) -> None:
    async def crash() -> None:
        await anyio.sleep(0.01)
        raise ConnectionError("lost")

    inner = rv.SupervisorSpec(intensity=1, children=[rv.coroutine("flaky", crash)])
    spec = rv.SupervisorSpec(
        intensity=0,
        children=[*trio(diary).children, rv.ChildSpec(id="inner", start=inner)],
    )
    cancelled = []

    async def body() -> None:
        async with rv.Supervisor(spec):
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as error:
                cancelled.append(error)
                raise

    with pytest.raises(rv.SupervisorGaveUpError) as raised:
        await body()
    assert cancelled
    assert raised.value.supervisor == "inner"
    assert str(raised.value).startswith("ConnectionError: lost (inner/flaky, incarnation 2, FATAL")
    assert "inner gave up: 2 restarts within 5 s, intensity is 1" in str(raised.value)
    assert diary == ALL


async def test_after_giving_up_each_call_says_why_root_cause_first() -> None:
    async def crash() -> None:
        await anyio.sleep(0.01)
        raise ConnectionError("lost")

    supervisor = rv.Supervisor(rv.SupervisorSpec(intensity=0, children=[rv.coroutine("a", crash)]))
    with pytest.raises(rv.SupervisorGaveUpError):
        async with supervisor:
            await anyio.sleep_forever()
    why = r"^ConnectionError: lost \(a, incarnation 1, .* gave up: .*; the tree does not run any more$"
    for use in (lambda: supervisor["a"], lambda: supervisor.actor("a"), lambda: supervisor.pool("a")):
        with pytest.raises(rv.SupervisorStoppedError, match=why):
            use()
    for call in (supervisor.which_children, supervisor.resume, supervisor.stop, supervisor.serve_web):
        with pytest.raises(rv.SupervisorStoppedError, match=why):
            await call()


async def test_the_blocks_own_exception_ends_the_tree_and_goes_on(diary: Diary) -> None:
    async def body() -> None:
        async with rv.Supervisor(trio(diary)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert diary == ALL


async def test_an_error_that_follows_from_giving_up_becomes_its_cause(diary: Diary) -> None:
    async def crash() -> None:
        raise ConnectionError("lost")

    spec = rv.SupervisorSpec(intensity=0, children=[*trio(diary).children, rv.coroutine("x", crash)])

    async def body() -> None:
        async with rv.Supervisor(spec) as sup:
            with anyio.CancelScope(shield=True):
                while True:
                    await sup.which_children()

    with pytest.raises(rv.SupervisorGaveUpError) as raised:
        await body()
    assert isinstance(raised.value.__cause__, rv.SupervisorStoppedError)
    assert diary == ALL


async def test_an_error_of_the_blocks_own_goes_before_giving_up(diary: Diary) -> None:
    async def crash() -> None:
        raise ConnectionError("lost")

    spec = rv.SupervisorSpec(intensity=0, children=[*trio(diary).children, rv.coroutine("x", crash)])

    async def body() -> None:
        async with rv.Supervisor(spec):
            try:
                await anyio.sleep_forever()
            finally:
                diary.clear()
                raise KeyError("mine")

    with pytest.raises(KeyError):
        await body()


Body = Callable[[], Coroutine[Any, Any, None]]
Way = Callable[[Body, anyio.Event], Awaitable[None]]


@asynccontextmanager
async def when(ready: anyio.Event, action: Callable[[], object]) -> AsyncIterator[None]:
    """Do something once the event is set."""

    async def wait() -> None:
        await ready.wait()
        action()

    task = asyncio.create_task(wait())
    yield
    await task


async def cancel_scope(body: Body, ready: anyio.Event) -> None:
    with anyio.CancelScope() as scope:
        async with when(ready, scope.cancel):
            await body()
    assert scope.cancelled_caught


async def anyio_timeout(body: Body, ready: anyio.Event) -> None:
    async def bounded() -> None:
        with anyio.fail_after(60) as scope:
            async with when(ready, lambda: setattr(scope, "timeout", anyio.current_time())):
                await body()

    with pytest.raises(TimeoutError):
        await bounded()


async def asyncio_timeout(body: Body, ready: anyio.Event) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60) as timeout:
            async with when(ready, lambda: timeout.reschedule(anyio.current_time())):
                await body()

    with pytest.raises(TimeoutError):
        await bounded()


async def task_cancel(body: Body, ready: anyio.Event) -> None:
    task = asyncio.ensure_future(body())
    async with when(ready, task.cancel):
        with pytest.raises(asyncio.CancelledError):
            await task


async def failing_sibling(body: Body, ready: anyio.Event) -> None:
    async def fail() -> None:
        await ready.wait()
        raise OSError("sibling")

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(body)
            tasks.start_soon(fail)

    with pytest.raises(ExceptionGroup) as raised:
        await both()
    assert [type(x) for x in raised.value.exceptions] == [OSError]


@pytest.mark.parametrize(
    "way",
    [cancel_scope, anyio_timeout, asyncio_timeout, task_cancel, failing_sibling],
    ids=lambda x: x.__name__,
)
async def test_a_cancelled_block_ends_the_tree_in_reverse_order_and_the_cancellation_goes_on(
    diary: Diary, way: Way
) -> None:
    ready = anyio.Event()

    async def body() -> None:
        async with rv.Supervisor(trio(diary)):
            ready.set()
            await anyio.sleep_forever()

    await way(body, ready)
    assert diary == ALL


@pytest.mark.parametrize("way", [cancel_scope, asyncio_timeout, task_cancel], ids=lambda x: x.__name__)
async def test_cancelled_while_it_starts_it_ends_what_is_up_in_reverse_order(diary: Diary, way: Way) -> None:
    ready = anyio.Event()

    async def never(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        del task_status
        diary.append("+d")
        ready.set()
        await anyio.sleep_forever()

    async def body() -> None:
        spec = rv.SupervisorSpec(children=[*trio(diary).children, rv.coroutine("d", never)])
        async with rv.Supervisor(spec):
            pytest.fail("the block was entered")

    await way(body, ready)
    assert diary == ["+a", "+b", "+c", "+d", "-c", "-b", "-a"]


async def test_a_second_cancellation_ends_everything_at_once(diary: Diary) -> None:
    ready = anyio.Event()

    async def slow() -> None:
        diary.append("+slow")
        try:
            await anyio.sleep_forever()
        finally:
            diary.append("asked")
            with anyio.CancelScope(shield=True):
                await anyio.sleep_forever()

    spec = rv.SupervisorSpec(children=[rv.coroutine("slow", slow, shutdown=rv.Shutdown.INFINITY)])

    async def body() -> None:
        async with rv.Supervisor(spec):
            ready.set()
            await anyio.sleep_forever()

    task = asyncio.ensure_future(body())
    await ready.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    assert diary == ["+slow", "asked"]
    task.cancel()
    with anyio.fail_after(60), pytest.raises(asyncio.CancelledError):
        await task


async def test_an_automatic_shutdown_cancels_the_block_and_is_no_error(diary: Diary) -> None:
    async def job() -> None:
        await anyio.sleep(0.05)

    spec = rv.SupervisorSpec(
        auto_shutdown=rv.AutoShutdown.ANY_SIGNIFICANT,
        children=[
            *trio(diary).children,
            rv.coroutine("job", job, restart=rv.Restart.TRANSIENT, significant=True),
        ],
    )
    async with rv.Supervisor(spec):
        await anyio.sleep_forever()
    assert diary == ALL


async def test_leaving_is_bounded_though_a_child_ignores_its_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timeouts = rv.Timeouts(runtime=RuntimeTimeouts(resisting_tasks=0.1))
    release = anyio.Event()

    async def resist() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    spec = rv.SupervisorSpec(children=[rv.coroutine("stubborn", resist, shutdown=0.1)])
    with anyio.fail_after(60):
        async with rv.Supervisor(spec, timeouts=timeouts) as sup:
            watch = sup.watch()
    assert [x.child async for x in watch if isinstance(x, r.CleanupUnverified)] == ["stubborn"]
    assert "tasks.resist" in caplog.text
    assert "stubborn#1" in caplog.text
    release.set()
    await anyio.wait_all_tasks_blocked()


async def test_nothing_of_it_is_left_on_the_loop(diary: Diary) -> None:
    before = asyncio.all_tasks()
    async with rv.Supervisor(trio(diary)) as sup:
        await sup.terminate_child("b")
        await sup.restart_child("b")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    gc.collect()  # an exception that nobody retrieved would be reported now, and warnings are errors


async def test_it_is_used_once_and_only_inside_its_block(diary: Diary) -> None:
    supervisor = rv.Supervisor(trio(diary))
    with pytest.raises(rv.SupervisorStoppedError):
        await supervisor.which_children()
    async with supervisor:
        pass
    with pytest.raises(rv.SupervisorStoppedError):
        await supervisor.which_children()
    with pytest.raises(rv.SupervisorStoppedError):
        async with supervisor:
            pass


async def test_two_supervisors_run_side_by_side_and_inside_each_other(diary: Diary) -> None:
    other: Diary = []
    async with rv.Supervisor(trio(diary)), rv.Supervisor(trio(other)):
        assert diary == other == ALL[:3]
    assert diary == other == ALL


async def test_hooks_see_every_state_from_the_first_start_on_and_a_broken_one_is_recorded(
    diary: Diary,
) -> None:
    supervisor = rv.Supervisor(trio(diary))
    entered: list[tuple[str, int]] = []
    left: list[str] = []
    supervisor.on_enter(
        "ALIVE", lambda x: entered.append((x.model.child, x.model.incarnation)), chart="actor"
    )
    supervisor.on_exit("SERVING", lambda x: left.append(x.after.path), chart="actor")

    def broken(_: object) -> None:
        raise RuntimeError("hook")

    supervisor.on_enter("SERVING", broken, chart="actor")
    watch = supervisor.watch()
    async with supervisor:
        assert entered == [("a", 1), ("b", 1), ("c", 1)]
    assert left == ["RESTARTING.STOPPING"] * 3
    failed = [x async for x in watch if isinstance(x, r.HookFailed)]
    assert [(x.child, x.place, x.error) for x in failed] == [
        (x, "SERVING", "RuntimeError: hook") for x in "abc"
    ]
    with pytest.raises(rv.SpecError, match="chart='task'"):
        supervisor.on_enter("ALIVE", broken, chart="task")


async def test_a_spec_that_is_none_is_refused_before_anything_starts() -> None:
    with pytest.raises(rv.SpecError, match="spec=None: must be a SupervisorSpec"):
        rv.Supervisor(None)  # type: ignore[arg-type]  # the mistake

    class Router:
        pass

    spec = rv.SupervisorSpec(children=[rv.actor("router", Router)])
    with pytest.raises(rv.SpecError, match="local=True: cannot go with actor children"):
        rv.Supervisor(spec, local=True)
