"""Users' strategies in a tree that really runs."""

from __future__ import annotations

import time
from collections.abc import Iterable

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor.strategies import Failure, Quorum, Rolling, Siblings, Step, start
from rayvisor.testing import Crash, FailedStart, FaultPlan, Puppets, VirtualTree, wait_for_state

SERVING = "ALIVE.SERVING"


def spec(puppets: Puppets, strategy: object, ids: str = "abc") -> rv.SupervisorSpec:
    return rv.SupervisorSpec(
        strategy=strategy,  # type: ignore[arg-type]
        intensity=10,
        children=[puppets.child(each) for each in ids],
    )


async def test_rolling_keeps_all_but_one_up() -> None:
    puppets = Puppets()
    async with rv.Supervisor(spec(puppets, Rolling())) as sup:
        puppets.crash("b")
        await wait_for_state(sup, "c", SERVING, incarnation=2)
    assert puppets.story[3:9] == ["crash b 1", "start b 2", "stop a 1", "start a 2", "stop c 1", "start c 2"]


@pytest.mark.parametrize(
    "strategy", [Quorum(2), Rolling(), "one_for_one", "one_for_all", "rest_for_one", "quorum"]
)
async def test_a_fault_plan_comes_to_the_same_in_virtual_and_in_real_time(strategy: object) -> None:
    plan = FaultPlan(Crash("b", at=1.0), FailedStart("b", 2), Crash("a", at=2.0), FailedStart("a", 3))
    puppets = Puppets(plan)
    tree_spec = spec(puppets, strategy)
    words = [word for word in plan.play(VirtualTree(tree_spec, outcomes=plan.outcomes)) if word != "tree up"]
    async with rv.Supervisor(tree_spec) as sup:
        await plan.run(puppets, speed=3)
        for each in "abc":
            last = max(int(word.split()[2]) for word in words if word.startswith(f"start {each} "))
            await wait_for_state(sup, each, SERVING, incarnation=last)
        story = list(puppets.story)
    assert [word.replace("fail", "start") for word in story if not word.startswith("crash")] == words


class Raises:
    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        raise LookupError(f"{failure.child} of {len(siblings)}")


async def test_a_strategy_that_raises_is_told_with_its_traceback_and_the_child_comes_back() -> None:
    puppets = Puppets()
    async with rv.Supervisor(spec(puppets, Raises())) as sup:
        watch = sup.watch()
        puppets.crash("b")
        await wait_for_state(sup, "b", SERVING, incarnation=2)
    (told,) = [record async for record in watch if isinstance(record, r.StrategyFailed)]
    assert (told.child, told.strategy, told.problem) == ("b", "Raises", "raised LookupError: b of 3")
    assert "in plan" in told.traceback


class Sleeps:
    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        del siblings
        time.sleep(3.0)  # long enough to be noticed
        return [start(failure.child)]


async def test_a_strategy_that_does_not_return_is_named_with_its_stack() -> None:
    puppets = Puppets()
    async with rv.Supervisor(spec(puppets, Sleeps())) as sup:
        watch = sup.watch()
        puppets.crash("b")
        with anyio.fail_after(30):
            told = await anext(record async for record in watch if isinstance(record, r.EventLoopBlocked))
        await wait_for_state(sup, "b", SERVING, incarnation=2)
    assert told.activity == "strategy Sleeps"
    assert "time.sleep(3.0)" in told.stack
    assert told.seconds > 2


async def test_waiting_for_a_state_says_where_the_child_is_instead() -> None:
    puppets = Puppets()
    async with rv.Supervisor(spec(puppets, Rolling())) as sup:
        with pytest.raises(TimeoutError, match=r"'a' was not DEAD within 0\.1 s; it is ALIVE\.SERVING"):
            await wait_for_state(sup, "a", "DEAD", timeout=0.1)


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(rv.SpecError, match=r"at=-1: must be a number of seconds, 0 or more"):
        FaultPlan(Crash("a", at=-1))
    with pytest.raises(rv.SpecError, match=r"incarnation=0: must be a whole number, 1 or more"):
        FaultPlan(FailedStart("a", 0))
