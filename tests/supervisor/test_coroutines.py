"""Coroutine children, and the verbs on them."""

from __future__ import annotations

import asyncio

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r


async def forever() -> None:
    await anyio.sleep_forever()


def tree(*children: rv.ChildSpec, **flags: object) -> rv.Supervisor:
    return rv.Supervisor(rv.SupervisorSpec(children=children, **flags))  # type: ignore[arg-type]


async def status(sup: rv.Supervisor, child: str) -> tuple[str, int]:
    found = {x.id: x for x in await sup.which_children()}[child]
    return found.configuration.path, found.incarnation


async def reaches(sup: rv.Supervisor, child: str, leaf: str, incarnation: int) -> None:
    with anyio.fail_after(60):
        while await status(sup, child) != (leaf, incarnation):  # noqa: ASYNC110 - it is asked as a user would
            await anyio.sleep(0.002)


async def test_a_crash_is_restarted_and_told_with_its_cause() -> None:
    crash = anyio.Event()

    async def work() -> None:
        await crash.wait()
        if crash_count.pop():
            raise ValueError("boom")
        await anyio.sleep_forever()

    crash_count = [False, True]
    async with tree(rv.coroutine("a", work)) as sup:
        watch = sup.watch()
        crash.set()
        await reaches(sup, "a", "ALIVE.SERVING", 2)
    seen = [x async for x in watch]
    fault = next(x.fault for x in seen if isinstance(x, r.FaultSeen))
    assert (fault.child, fault.incarnation, str(fault.root)) == ("a", 1, "ValueError: boom")
    assert "in work" in fault.traceback
    decision = next(x for x in seen if isinstance(x, r.DecisionMade))
    assert (decision.decision, decision.restarts, decision.intensity) == ("restart", 1, 1)
    assert fault.at <= decision.at


async def test_a_normal_end_brings_back_a_permanent_child_and_rests_a_transient_one() -> None:
    async def once() -> None:
        await anyio.sleep(0.01)

    runs = [0]

    async def first_only() -> None:
        runs[0] += 1
        if runs[0] > 1:
            await anyio.sleep_forever()

    async with tree(
        rv.coroutine("permanent", first_only),
        rv.coroutine("transient", once, restart=rv.Restart.TRANSIENT),
        rv.coroutine("temporary", once, restart=rv.Restart.TEMPORARY),
    ) as sup:
        await reaches(sup, "permanent", "ALIVE.SERVING", 2)
        await reaches(sup, "transient", "DEAD.COMPLETED", 1)
        with anyio.fail_after(60):
            while (await sup.count_children()).specs != 2:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.002)


async def test_an_exit_ends_the_child_and_not_the_program() -> None:
    async def leave() -> None:
        raise SystemExit(0)

    async with tree(rv.coroutine("a", leave, restart=rv.Restart.TRANSIENT), intensity=0) as sup:
        await reaches(sup, "a", "DEAD.COMPLETED", 1)


async def test_an_exit_with_a_status_is_a_crash() -> None:
    runs = [3]

    async def leave() -> None:
        if runs:
            raise SystemExit(runs.pop())
        await anyio.sleep_forever()

    supervisor = tree(rv.coroutine("a", leave, restart=rv.Restart.TRANSIENT))
    watch = supervisor.watch()
    async with supervisor as sup:
        await reaches(sup, "a", "ALIVE.SERVING", 2)
    assert [x.fault.exit_code async for x in watch if isinstance(x, r.FaultSeen)] == [3]


async def test_a_child_that_is_cancelled_from_elsewhere_has_crashed() -> None:
    seen: list[asyncio.Task[object]] = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append(task)
        await anyio.sleep_forever()

    async with tree(rv.coroutine("a", work)) as sup:
        await anyio.wait_all_tasks_blocked()
        watch = sup.watch()
        seen[0].cancel()
        await reaches(sup, "a", "ALIVE.SERVING", 2)
    roots = [str(x.fault.root) async for x in watch if isinstance(x, r.FaultSeen)]
    assert roots == ["Cancelled: the coroutine was cancelled by other code"]


async def test_a_start_that_is_not_announced_in_time_fails() -> None:
    async def never(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        del task_status
        await anyio.sleep_forever()

    with pytest.raises(rv.StartFailedError, match=r"StartTimeout: task_status.started\(\) was not called"):
        await tree(rv.coroutine("a", never, start_timeout=0.05)).__aenter__()


async def test_a_start_that_ends_without_announcing_itself_fails() -> None:
    async def silent(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        del task_status

    with pytest.raises(rv.StartFailedError, match="NeverStarted: the coroutine returned without"):
        await tree(rv.coroutine("a", silent)).__aenter__()


async def test_the_verbs_start_end_restart_and_delete() -> None:
    async with tree(rv.coroutine("a", forever)) as sup:
        assert await sup.start_child(rv.coroutine("b", forever)) == "b"
        with pytest.raises(rv.AlreadyStartedError):
            await sup.start_child(rv.coroutine("b", forever))
        with pytest.raises(rv.ChildRunningError):
            await sup.delete_child("b")
        await sup.terminate_child("b")
        assert await status(sup, "b") == ("DEAD.STOPPED", 1)
        with pytest.raises(rv.AlreadyPresentError):
            await sup.start_child(rv.coroutine("b", forever))
        await sup.restart_child("b")
        assert await status(sup, "b") == ("ALIVE.SERVING", 2)
        await sup.terminate_child("b")
        await sup.delete_child("b")
        with pytest.raises(rv.UnknownChildError, match="no child has the id 'b'; there are: a"):
            await sup.restart_child("b")
        with pytest.raises(rv.UnknownChildError):
            sup["b"]
        assert (await sup.count_children()).active == 1
        assert (await sup.get_childspec("a")).id == "a"


async def test_a_path_names_a_child_further_down() -> None:
    inner = rv.SupervisorSpec(children=[rv.coroutine("x", forever)])
    async with tree(rv.ChildSpec(id="inner", start=inner)) as sup:
        assert [x.path for x in await sup.which_children("inner")] == ["inner/x"]
        assert await sup.start_child(rv.coroutine("y", forever), under="inner") == "inner/y"
        await sup.terminate_child("inner/x")
        assert (await sup.count_children("inner")).active == 1


async def test_a_child_that_cannot_be_started_leaves_nothing_behind() -> None:
    async def fail(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        del task_status
        raise ValueError("no")

    async with tree() as sup:
        with pytest.raises(rv.ChildStartError, match=r"^ValueError: no .*; 'a' was not started"):
            await sup.start_child(rv.coroutine("a", fail))
        assert await sup.which_children() == []


async def test_pause_and_resume_move_the_gate_and_survive_a_restart() -> None:
    crash = anyio.Event()

    async def work() -> None:
        await crash.wait()
        raise ValueError("boom")

    async with tree(rv.coroutine("a", work)) as sup:
        await sup.pause("a")
        assert await status(sup, "a") == ("PAUSED.REQUESTED", 1)
        crash.set()
        crash = anyio.Event()
        await reaches(sup, "a", "PAUSED.REQUESTED", 2)
        await sup.resume("a")
        assert await status(sup, "a") == ("ALIVE.SERVING", 2)


async def test_instances_of_a_template_are_started_by_name() -> None:
    spec = rv.SupervisorSpec(
        strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE, children=[rv.coroutine("template", forever)]
    )
    async with rv.Supervisor(spec) as sup:
        assert await sup.start_child(rv.Instance("x")) == "x"
        assert await sup.start_child() is not None
        assert (await sup.count_children()).active == 2
        await sup.terminate_child("x")
        assert (await sup.count_children()).active == 1


async def test_what_a_child_raises_while_it_is_ended_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("untidy")

    async with tree(rv.coroutine("a", work)) as sup:
        watch = sup.watch()
        await anyio.wait_all_tasks_blocked()
        await sup.terminate_child("a")
        assert await status(sup, "a") == ("DEAD.STOPPED", 1)
    assert [x async for x in watch if isinstance(x, r.FaultSeen)] == []
    assert "stop.raised" in caplog.text
    assert "ValueError: untidy" in caplog.text
