"""Effects: whatever a carrier does, the tree goes on, and every end is proven or recorded as unproven."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import anyio
import pytest

from rayvisor import records as r
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.children.protocol import StartRefusedError
from rayvisor.errors import ChildStartError, SupervisorBusyError, SupervisorStoppedError
from rayvisor.faults import Cause, FaultClass, Termination
from rayvisor.specs import ChildSpec, Shutdown
from rayvisor.timeouts import RuntimeTimeouts
from tests.runtime import stage
from tests.runtime.stage import ScriptedBackend, ScriptedIncarnation, children

IMPATIENT = RuntimeTimeouts(start_slack=0.1, stop_slack=0.1, clean=0.1, release=0.1, unwind=0.05)
"""Timeouts of a tenth of a second where the product has ten seconds and more."""
play = functools.partial(stage.play, timeouts=IMPATIENT)


async def hang(_: ScriptedIncarnation) -> None:
    await anyio.sleep_forever()


async def resist(carrier: ScriptedIncarnation) -> bool:
    """Ignore every cancellation until the test lets go."""
    with anyio.CancelScope(shield=True):
        await carrier.dead.wait()
    return False


async def raise_(carrier: ScriptedIncarnation) -> None:
    raise OSError(f"{carrier.name} is broken")


async def unproven(_: ScriptedIncarnation) -> bool:
    return False


# --- starts -------------------------------------------------------------------------------------------


async def test_children_start_in_order_each_after_the_one_before_is_up() -> None:
    gate = anyio.Event()

    async def wait(carrier: ScriptedIncarnation) -> None:
        if carrier.child == "a":
            await gate.wait()

    async with play(*children("a", "b"), backend=ScriptedBackend(start=wait)) as stage:
        await stage.until(lambda: stage.backend.diary == ["start a#1"])
        assert not stage.runtime.settled.is_set()
        gate.set()
        await stage.up()
        assert stage.backend.diary == ["start a#1", "start b#1"]


async def test_a_start_that_ignores_its_deadline_is_given_up_and_ended_when_it_comes_up_late() -> None:
    gate = anyio.Event()

    async def ignore(carrier: ScriptedIncarnation) -> None:
        if carrier.name == "a#2":
            with anyio.CancelScope(shield=True):
                await gate.wait()

    backend = ScriptedBackend(start=ignore)
    specs = children("a", start_timeout=0.05)
    async with play(*specs, backend=backend, flags={"intensity": 3}) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        await stage.until(lambda: stage.at("a") == "SERVING" and "start a#3" in backend.diary)
        late = next(f.fault for f in stage.seen(r.FaultSeen) if f.fault.incarnation == 2)
        assert late.root.type == "StartTimeout"
        gate.set()
        await stage.until(lambda: "kill a#2" in backend.diary)
        assert [(x.child, x.incarnation) for x in stage.seen(r.LateStart)] == [("a", 2)]
        assert stage.at("a") == "SERVING"
        assert "kill a#3" not in backend.diary


async def test_a_start_that_was_given_up_and_fails_later_is_one_fault() -> None:
    gate = anyio.Event()
    over = anyio.Event()

    async def ignore(carrier: ScriptedIncarnation) -> None:
        if carrier.name == "a#2":
            try:
                with anyio.CancelScope(shield=True):
                    await gate.wait()
                raise OSError("too late to matter")
            finally:
                over.set()

    backend = ScriptedBackend(start=ignore)
    async with play(*children("a", start_timeout=0.05), backend=backend, flags={"intensity": 3}) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        await stage.until(lambda: stage.at("a") == "SERVING" and "start a#3" in backend.diary)
        gate.set()
        await over.wait()
        await anyio.wait_all_tasks_blocked()
        assert [x.fault.root.type for x in stage.seen(r.FaultSeen)] == ["Crash", "StartTimeout"]


async def test_a_start_that_is_called_off_makes_nothing() -> None:
    async with play() as stage:
        await stage.up()
        # Both effects are carried out before the first one's task has had its turn.
        stage.runtime.incarnations.start(m.Start("x", 1, children("x")[0], None))
        stage.runtime.incarnations.stop(m.Stop("x", 1, Shutdown(1.0)))
        await stage.until(lambda: not stage.runtime._mailbox._events)
        await anyio.wait_all_tasks_blocked()
        assert stage.backend.diary == []


async def test_what_nothing_can_carry_fails_with_one_clear_error() -> None:
    class Strange:
        kind = "strange"

    async with play(ChildSpec(id="a", start=Strange())) as stage:
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        fault = stage.seen(r.FaultSeen)[0].fault
        assert str(fault.root) == "UnknownKind: no backend runs children of kind='strange'"
        assert fault.fault_class is FaultClass.PERMANENT


async def test_a_start_whose_arguments_cannot_be_compared_with_a_siblings_is_a_fault_as_any_other() -> None:
    @dataclass(frozen=True)
    class Start:
        args: tuple[Any, ...]
        kind: str = "scripted"

    class Array:
        def __eq__(self, other: object) -> NoReturn:
            raise ValueError("the truth value of an array is ambiguous")

        def __hash__(self) -> int:
            raise TypeError("unhashable")

    async def start(carrier: ScriptedIncarnation) -> None:
        if carrier.child == "b":
            raise OSError("no such device")

    specs = [ChildSpec(id=id_, start=Start((Array(),))) for id_ in "ab"]
    async with play(*specs, backend=ScriptedBackend(start=start)) as stage:
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        fault = stage.seen(r.FaultSeen)[0].fault
        assert (str(fault.root), fault.fault_class) == ("OSError: no such device", FaultClass.PERMANENT)
        assert "stop a#1" in stage.backend.diary


async def test_a_backend_that_raises_in_a_start_is_a_fault_with_its_traceback() -> None:
    backend = ScriptedBackend(start=raise_)
    async with play(*children("a"), backend=backend) as stage:
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        assert stage.runtime.ended is not None
        assert not stage.runtime.ended.started
        fault = stage.seen(r.FaultSeen)[0].fault
        assert str(fault.root) == "OSError: a#1 is broken"
        assert "in raise_" in fault.traceback


# --- ends ---------------------------------------------------------------------------------------------


async def test_children_end_in_reverse_order_each_after_the_one_before_is_gone() -> None:
    gates = {name: anyio.Event() for name in "abc"}

    async def wait(carrier: ScriptedIncarnation) -> bool:
        await gates[carrier.child].wait()
        return True

    async with play(*children(*"abc"), backend=ScriptedBackend(stop=wait)) as stage:
        await stage.up()
        stage.runtime.post(m.Halt())
        ended: list[str] = []
        for name in "cba":
            ended.append(f"stop {name}#1")
            await stage.until(lambda: [x for x in stage.backend.diary if x.startswith("stop")] == ended)
            gates[name].set()
        with anyio.fail_after(60):
            await stage.runtime.over.wait()


@pytest.mark.parametrize("stop", [hang, resist, raise_], ids=["hangs", "resists", "raises"])
async def test_a_stop_that_fails_is_followed_by_the_kill_and_the_tree_ends(
    stop: Callable[[ScriptedIncarnation], Awaitable[bool]],
) -> None:
    backend = ScriptedBackend(stop=stop)
    async with play(*children("a", shutdown=0.05), backend=backend) as stage:
        await stage.up()
        await stage.end()
        assert backend.diary[:3] == ["start a#1", "stop a#1", "kill a#1"]
        assert stage.seen(r.CleanupUnverified) == []
        backend.carriers["a#1"].die()


@pytest.mark.parametrize(
    "kill", [hang, resist, raise_, unproven], ids=["hangs", "resists", "raises", "fails"]
)
async def test_a_kill_that_fails_is_recorded_as_unproven_and_the_tree_ends(
    kill: Callable[[ScriptedIncarnation], Awaitable[bool]],
) -> None:
    backend = ScriptedBackend(kill=kill)
    async with play(*children("a", shutdown=Shutdown.BRUTAL_KILL), backend=backend) as stage:
        await stage.up()
        await stage.end()
        assert [(x.child, x.incarnation, x.why) for x in stage.seen(r.CleanupUnverified)] == [
            ("a", 1, "stop")
        ]
        backend.carriers["a#1"].die()


@pytest.mark.parametrize(
    "clean", [hang, resist, raise_, unproven], ids=["hangs", "resists", "raises", "fails"]
)
async def test_the_next_incarnation_starts_though_the_proof_fails_and_that_is_recorded(
    clean: Callable[[ScriptedIncarnation], Awaitable[bool]],
) -> None:
    backend = ScriptedBackend(clean=clean)
    async with play(*children("a"), backend=backend) as stage:
        await stage.up()
        backend.carriers["a#1"].dead.set()
        await stage.until(lambda: "start a#2" in backend.diary)
        assert [(x.child, x.incarnation, x.why) for x in stage.seen(r.CleanupUnverified)] == [
            ("a", 1, "clean")
        ]


async def test_the_next_incarnation_starts_only_after_the_proof() -> None:
    gate = anyio.Event()

    async def wait(_: ScriptedIncarnation) -> bool:
        await gate.wait()
        return True

    backend = ScriptedBackend(clean=wait)
    async with play(*children("a"), backend=backend) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        await stage.until(lambda: "clean a#1" in backend.diary)
        assert stage.at("a") == "STOPPING"
        assert "start a#2" not in backend.diary
        gate.set()
        await stage.until(lambda: "start a#2" in backend.diary)
        assert stage.seen(r.CleanupUnverified) == []


async def test_infinity_is_waited_for_beyond_every_deadline_until_a_hurry() -> None:
    backend = ScriptedBackend(stop=hang)
    async with play(*children("a", shutdown=Shutdown.INFINITY), backend=backend) as stage:
        await stage.up()
        stage.runtime.post(m.Halt())
        with anyio.move_on_after(0.5):
            await stage.runtime.over.wait()
        assert not stage.runtime.over.is_set()
        stage.runtime.kill()
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        assert backend.diary[1:3] == ["stop a#1", "kill a#1"]


async def test_after_a_hurry_nothing_is_asked_any_more_only_killed() -> None:
    backend = ScriptedBackend(stop=hang)
    async with play(*children("a", "b", shutdown=60.0), backend=backend) as stage:
        await stage.up()
        stage.runtime.kill()
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        assert sorted(x for x in backend.diary if "stop" in x or "kill" in x) == ["kill a#1", "kill b#1"]


async def test_a_fault_while_stopping_changes_nothing() -> None:
    async def die_then_end(carrier: ScriptedIncarnation) -> bool:
        carrier.die()
        await anyio.sleep(0.01)
        return True

    async with play(*children("a", "b"), backend=ScriptedBackend(stop=die_then_end)) as stage:
        await stage.up()
        ended = await stage.end()
        assert not ended.gave_up
        assert stage.seen(r.FaultSeen) == []
        assert [x for x in stage.backend.diary if x.startswith("start")] == ["start a#1", "start b#1"]


async def test_two_faults_at_once_are_two_restarts() -> None:
    backend = ScriptedBackend()
    async with play(*children("a", "b"), backend=backend, flags={"intensity": 2}) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        backend.carriers["b#1"].die()
        await stage.until(lambda: {"start a#2", "start b#2"} <= set(backend.diary))
        await stage.until(lambda: stage.at("a") == stage.at("b") == "SERVING")
        assert [x.decision for x in stage.seen(r.DecisionMade)] == ["restart", "restart"]


async def test_a_fault_during_recovery_is_tried_again_and_counted() -> None:
    async def fail_twice(carrier: ScriptedIncarnation) -> None:
        if carrier.incarnation in {2, 3}:
            raise ConnectionResetError(carrier.name)

    backend = ScriptedBackend(start=fail_twice)
    async with play(*children("a"), backend=backend, flags={"intensity": 3}) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        await stage.until(lambda: "start a#4" in backend.diary)
        await stage.until(lambda: stage.at("a") == "SERVING")
        assert [x.fault.root.message for x in stage.seen(r.FaultSeen)] == ["a#1", "a#2", "a#3"]


async def test_giving_up_names_the_last_fault_and_who_gave_up() -> None:
    backend = ScriptedBackend()
    async with play(*children("a"), backend=backend) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        await stage.until(lambda: "a#2" in backend.carriers and stage.at("a") == "SERVING")
        backend.carriers["a#2"].die("outer", "inner")
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        ended = stage.runtime.ended
        assert ended is not None
        assert ended.gave_up == "2 restarts within 5 s, intensity is 1"
        assert ended.origin == ""
        assert str(ended.exit.fault).startswith("Crash: inner (a, incarnation 2, FATAL")


# --- what is known ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "expected"), [(False, FaultClass.PERMANENT), (True, FaultClass.FATAL)], ids=["never", "before"]
)
async def test_a_failing_start_is_permanent_unless_the_configuration_has_served(
    *, served: bool, expected: FaultClass
) -> None:
    async def fail(carrier: ScriptedIncarnation) -> None:
        if carrier.incarnation == 1 + served:
            raise ValueError("no such model")

    backend = ScriptedBackend(start=fail)
    async with play(*children("a", restart="permanent"), backend=backend, flags={"intensity": 2}) as stage:
        await stage.runtime.settled.wait()
        if served:
            backend.carriers["a#1"].die()
            await stage.until(lambda: stage.at("a") == "SERVING" and "a#3" in backend.carriers)
        assert stage.seen(r.FaultSeen)[-1].fault.fault_class is expected


async def test_a_failing_start_that_its_backend_knows_to_be_permanent_is_so_whatever_has_served() -> None:
    taken = Termination(causes=(Cause("PortTakenError", "port 8000 is taken"),), permanent=True)

    async def fail(carrier: ScriptedIncarnation) -> None:
        if carrier.incarnation == 2:
            raise StartRefusedError(taken)

    backend = ScriptedBackend(start=fail)
    async with play(*children("a"), backend=backend, flags={"intensity": 9}) as stage:
        await stage.up()
        backend.carriers["a#1"].die()
        with anyio.fail_after(60):
            await stage.runtime.over.wait()
        crash, last = (record.fault for record in stage.seen(r.FaultSeen))
        assert (crash.fault_class, last.fault_class) == (FaultClass.FATAL, FaultClass.PERMANENT)
        assert str(last.root) == "PortTakenError: port 8000 is taken"
        assert "start a#3" not in backend.diary


async def test_a_sibling_with_the_same_configuration_has_shown_that_it_can_serve() -> None:
    async def fail(carrier: ScriptedIncarnation) -> None:
        if carrier.name == "b#1":
            raise RuntimeError("no memory left for it")

    backend = ScriptedBackend(start=fail)
    specs = children("a", "b", retry_first_start=True)
    async with play(*specs, backend=backend, flags={"intensity": 2}) as stage:
        await stage.up()
        assert stage.seen(r.FaultSeen)[0].fault.fault_class is FaultClass.FATAL
        assert stage.at("b") == "SERVING"


async def test_what_a_dead_child_held_is_given_back_before_it_is_started_again() -> None:
    gate = anyio.Event()

    class Slow(ScriptedBackend):
        async def release(self, child: str) -> None:
            await gate.wait()
            await super().release(child)

    timeouts = replace(IMPATIENT, release=30.0)
    async with play(*children("a"), backend=Slow(), timeouts=timeouts) as stage:
        await stage.up()
        await stage.runtime.call(m.Verb.TERMINATE_CHILD, "", "a")
        stage.tasks.start_soon(stage.runtime.call, m.Verb.RESTART_CHILD, "", "a")
        await stage.until(lambda: stage.at("a") == "STARTING")
        await anyio.wait_all_tasks_blocked()
        assert "start a#2" not in stage.backend.diary
        gate.set()
        await stage.until(lambda: stage.at("a") == "SERVING")
        assert stage.backend.diary[-2:] == ["release a", "start a#2"]


@pytest.mark.parametrize("way", ["hangs", "raises"])
async def test_a_child_whose_release_fails_can_be_started_again(way: str) -> None:
    class Broken(ScriptedBackend):
        async def release(self, child: str) -> None:
            if way == "raises":
                raise OSError(child)
            await anyio.sleep_forever()

    async with play(*children("a"), backend=Broken()) as stage:
        await stage.up()
        await stage.runtime.call(m.Verb.TERMINATE_CHILD, "", "a")
        with anyio.fail_after(60):
            await stage.runtime.call(m.Verb.RESTART_CHILD, "", "a")
        assert stage.at("a") == "SERVING"


async def test_a_crash_that_its_backend_calls_intended_is_no_fault() -> None:
    backend = ScriptedBackend()
    async with play(*children("a", restart="transient"), backend=backend) as stage:
        await stage.up()
        backend.carriers["a#1"].ending = Termination(causes=(Cause("Returned", ""),), intended=True)
        backend.carriers["a#1"].dead.set()
        await stage.until(lambda: stage.at("a") == "COMPLETED")
        assert stage.seen(r.FaultSeen) == []


# --- calls --------------------------------------------------------------------------------------------


async def test_calls_are_answered_while_a_child_takes_long_to_start() -> None:
    async def slow(carrier: ScriptedIncarnation) -> None:
        if carrier.child == "slow":
            await anyio.sleep_forever()

    async with play(*children("a"), backend=ScriptedBackend(start=slow)) as stage:
        await stage.up()
        refused: list[BaseException] = []

        async def start() -> None:
            try:
                await stage.runtime.call(m.Verb.START_CHILD, "", *children("slow"))
            except ChildStartError as error:
                refused.append(error)

        stage.tasks.start_soon(start)
        await stage.until(lambda: "start slow#1" in stage.backend.diary)
        with anyio.fail_after(60):
            found = await stage.runtime.call(m.Verb.WHICH_CHILDREN, "")
        assert [child.id for child in found] == ["slow", "a"]
        await stage.end()
        await stage.until(lambda: refused)


async def test_more_calls_than_may_wait_are_refused_but_no_death_is() -> None:
    async def slow(carrier: ScriptedIncarnation) -> None:
        if carrier.child != "up":
            await anyio.sleep_forever()

    backend = ScriptedBackend(start=slow)
    async with play(*children("up"), backend=backend, call_limit=2) as stage:
        await stage.up()
        runtime = stage.runtime
        for name in "ab":
            stage.tasks.start_soon(_ended, runtime.call, m.Verb.START_CHILD, "", *children(name))
        await stage.until(lambda: {"start a#1", "start b#1"} <= set(backend.diary))
        with pytest.raises(SupervisorBusyError, match="2 calls wait for the supervisor already"):
            await runtime.call(m.Verb.WHICH_CHILDREN, "")
        backend.carriers["up#1"].die()
        await stage.until(lambda: "start up#2" in backend.diary)
        await stage.end()
        await stage.until(lambda: runtime._mailbox._calls == 0)


async def test_a_call_that_waits_when_the_tree_ends_is_told_so() -> None:
    async with play(backend=ScriptedBackend(start=hang)) as stage:
        await stage.up()
        told: list[Exception] = []

        async def start() -> None:
            try:
                await stage.runtime.call(m.Verb.START_CHILD, "", *children("a"))
            except (ChildStartError, SupervisorStoppedError) as error:
                told.append(error)

        stage.tasks.start_soon(start)
        await stage.until(lambda: stage.backend.diary)
        await stage.end()
        await stage.until(lambda: told)
        with pytest.raises(SupervisorStoppedError):
            await stage.runtime.call(m.Verb.WHICH_CHILDREN, "")


async def test_a_caller_that_is_cancelled_frees_its_place_when_the_answer_comes() -> None:
    async with play(*children("a"), call_limit=1) as stage:
        await stage.up()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stage.runtime.call(m.Verb.WHICH_CHILDREN, "")
        await stage.until(lambda: stage.runtime._mailbox._calls == 0)
        assert await stage.runtime.call(m.Verb.COUNT_CHILDREN, "")


async def _ended(call: Callable[..., Awaitable[object]], *arguments: object) -> None:
    with suppress(ChildStartError, SupervisorStoppedError):
        await call(*arguments)
