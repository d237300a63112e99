"""Plans of users' strategies, carried out in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import rayvisor as rv
from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.planning import SiblingView
from rayvisor.specs import ChildSpec, SupervisorSpec
from rayvisor.strategies import (
    Failure,
    Quorum,
    Rolling,
    Siblings,
    Start,
    Step,
    Stop,
    WaitServing,
    escalate,
    in_place,
    start,
    stop,
    wait_serving,
)
from rayvisor.testing.virtual import BOOM, HANGS, IGNORES, NOTHING, UP, VirtualTree, fails, fault_of

Plan = Callable[[Failure, Siblings], Iterable[Step]]


class Asked:
    """A strategy made of a function; it keeps the failures it was asked about."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.failures: list[Failure] = []

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        self.failures.append(failure)
        return self._plan(failure, siblings)


def tree(strategy: Any, ids: str = "abc", *, outcomes: Any = None, **options: Any) -> VirtualTree:
    child = {key: options.pop(key) for key in ("restart", "backoff", "start_timeout") if key in options}
    options.setdefault("intensity", 5)
    children = [ChildSpec(id=each, start=NOTHING, **child) for each in ids]
    made = VirtualTree(SupervisorSpec(strategy=strategy, children=children, **options), outcomes=outcomes)
    made.take()
    return made


def leaves(tree: VirtualTree, ids: str = "abc") -> list[str]:
    return [tree.leaf(each) for each in ids]


# --- the steps ---------------------------------------------------------------------------------


def test_members_are_stopped_in_reverse_and_started_in_order() -> None:
    t = tree(Asked(lambda failure, _: [stop(["a", failure.child, "c"]), start([failure.child, "c", "a"])]))
    t.crash("b")
    assert t.take() == ["stop c 1", "stop a 1", "start b 2", "start c 2", "start a 2"]


def test_a_plan_that_only_starts_the_failed_child_waits_until_it_is_proven_gone() -> None:
    t = tree(Asked(lambda failure, _: [start(failure.child), wait_serving(failure.child)]))
    t.crash("b", gone=False)
    assert t.take() == ["clean b 1"]
    t.prove("b")
    assert t.take() == ["start b 2"]


def test_starts_side_by_side_are_as_many_as_the_step_says() -> None:
    t = tree(
        Asked(lambda _, siblings: [stop(siblings), start(siblings, concurrency=2)]),
        "abcd",
        outcomes={each: [UP, HANGS] for each in "abcd"},
    )
    t.crash("a")
    assert t.take() == ["stop d 1", "stop c 1", "stop b 1", "start a 2", "start b 2"]
    t.feed(m.Started("b", 2))
    assert t.take() == ["start c 2"]


def test_children_that_run_are_not_started_twice() -> None:
    t = tree(Asked(lambda _, siblings: [start(siblings)]))
    t.crash("b")
    assert t.take() == ["start b 2"]
    assert leaves(t) == ["SERVING"] * 3


def test_what_a_plan_stops_and_does_not_start_stays_down() -> None:
    t = tree(Asked(lambda failure, _: [stop("c"), start(failure.child)]))
    t.crash("b")
    assert t.take() == ["stop c 1", "start b 2"]
    assert leaves(t) == ["SERVING", "SERVING", "STOPPED"]
    assert t.call(m.Verb.RESTART_CHILD, "", "c") is not None
    assert t.leaf("c") == "SERVING"


def test_a_temporary_child_that_a_plan_stops_is_removed_and_is_no_sibling_any_more() -> None:
    t = tree(Asked(lambda failure, _: [stop("c"), start(failure.child)]), restart="temporary")
    t.core.children["b"].spec = ChildSpec(id="b", start=NOTHING)
    t.crash("b")
    assert t.take() == ["stop c 1", "start b 2"]
    told = [effect for effect in t.effects if getattr(effect, "child", "") == "c"]
    assert isinstance(told[-1], m.Removed)


def test_without_steps_the_failed_child_stays_down_and_nothing_is_counted() -> None:
    t = tree(Asked(lambda *_: []), intensity=0)
    for each in "abc":
        t.crash(each)
    assert t.take() == []
    assert leaves(t) == ["STOPPED"] * 3
    assert t.ended is None


def test_escalating_gives_the_supervisor_up_with_the_reason() -> None:
    t = tree(Asked(lambda *_: [escalate("two of three are lost")]))
    t.crash("b")
    assert t.take() == ["stop c 1", "stop a 1", "tree ended"]
    assert t.ended is not None
    assert t.ended.gave_up == "two of three are lost"
    assert t.leaf("b") == "EXHAUSTED"


def test_a_plan_may_escalate_after_its_other_steps() -> None:
    t = tree(Asked(lambda *_: [stop("a"), escalate("enough")]))
    t.crash("b")
    assert t.take() == ["stop a 1", "stop c 1", "tree ended"]


def test_a_step_that_waits_for_serving_goes_on_when_the_pause_is_over() -> None:
    t = tree(Asked(lambda *_: [start("b"), wait_serving("a"), stop("c"), start("c")]))
    t.call(m.Verb.PAUSE, "", "a")
    t.crash("b")
    assert t.take() == ["start b 2"]
    t.call(m.Verb.RESUME, "", "a")
    assert t.take() == ["stop c 1", "start c 2"]


def test_a_start_that_chose_not_to_run_is_not_waited_for() -> None:
    t = tree(Rolling(), outcomes={"b": [UP, IGNORES]})
    t.crash("b")
    assert t.take() == ["start b 2", "stop a 1", "start a 2", "stop c 1", "start c 2"]


# --- a step fails --------------------------------------------------------------------------------


def test_a_failed_start_ends_the_plan_and_the_strategy_is_asked_about_that_child() -> None:
    asked = Asked(lambda _, siblings: [stop(siblings), start(siblings)])
    t = tree(asked, outcomes={"b": [UP, fails()]})
    t.crash("a")
    assert t.take() == [
        "stop c 1",
        "stop b 1",
        "start a 2",
        "start b 2",
        "stop a 2",
        *(f"start {x}" for x in ("a 3", "b 3", "c 2")),
    ]
    assert [(f.child, type(f.step)) for f in asked.failures] == [("a", type(None)), ("b", Start)]
    assert [f.restarts for f in asked.failures] == [0, 1]


def gave_up(tree: VirtualTree) -> str:
    return "" if tree.ended is None else tree.ended.gave_up


def test_a_child_that_does_not_serve_in_time_fails_the_step() -> None:
    asked = Asked(
        lambda failure, _: (
            [start("b"), wait_serving("a", timeout=7)] if failure.step is None else [escalate("late")]
        )
    )
    t = tree(asked)
    t.call(m.Verb.PAUSE, "", "a")
    t.crash("b")
    t.advance(6.9)
    assert not gave_up(t)
    t.advance(0.2)
    assert gave_up(t) == "late"
    assert asked.failures[1].child == "a"
    assert asked.failures[1].step == WaitServing("a", 7.0)


def test_a_child_that_dies_while_it_is_waited_for_fails_the_step() -> None:
    asked = Asked(
        lambda failure, _: [start("b"), wait_serving("a")] if failure.step is None else [start(failure.child)]
    )
    t = tree(asked)
    t.call(m.Verb.PAUSE, "", "a")
    t.crash("b")
    t.crash("a")
    assert t.take() == ["start b 2", "start a 2"]
    assert [(f.child, f.step) for f in asked.failures][1] == ("a", WaitServing("a", 600.0))


def test_what_a_live_child_does_in_place_is_asked_for_and_waited_for() -> None:
    asked = Asked(
        lambda failure, _: (
            [wait_serving("a", timeout=1)]
            if failure.child == "b"
            else [in_place("reload"), stop("c"), start("c")]
        )
    )
    t = tree(asked)
    t.call(m.Verb.PAUSE, "", "a")
    t.crash("b")
    t.advance(2)
    assert t.take() == ["act a reload"]
    t.acted("a")
    assert t.take() == ["stop c 1", "start c 2"]


def test_what_did_not_help_in_place_asks_again() -> None:
    plans: Iterator[list[Step]] = iter([[wait_serving("a", timeout=1)], [in_place("reload")], [start("a")]])
    asked = Asked(lambda *_: next(plans))
    t = tree(asked)
    t.call(m.Verb.PAUSE, "", "a")
    t.crash("b")
    t.advance(2)
    t.acted("a", ok=False, exit=fault_of(rv.FaultClass.FATAL, "no such weights"))
    assert t.take() == ["act a reload", "stop a 1", "start a 2"]
    assert asked.failures[2].step == in_place("reload")
    assert "no such weights" in str(asked.failures[2].fault)


def test_a_dead_child_cannot_do_anything_in_place() -> None:
    asked = Asked(lambda failure, _: [in_place("reload")] if failure.step is None else [start(failure.child)])
    t = tree(asked)
    t.crash("b")
    assert t.take() == ["start b 2"]
    assert [type(f.step).__name__ for f in asked.failures] == ["NoneType", "InPlace"]


# --- what comes meanwhile ---------------------------------------------------------------------------


def test_a_child_that_dies_while_a_plan_is_carried_out_is_judged_after_it() -> None:
    asked = Asked(lambda failure, _: [stop("c"), start([failure.child, "c"])])
    t = tree(asked)
    t.stop_seconds["c"] = 3.0
    t.crash("b")
    t.crash("a")
    assert t.take() == ["stop c 1"]
    t.advance(3)
    assert [f.child for f in asked.failures] == ["b", "a"]
    assert t.take() == ["start b 2", "start c 2", "stop c 2"]


def test_a_member_that_dies_before_its_turn_is_not_judged() -> None:
    asked = Asked(lambda _, siblings: [stop(siblings), start(siblings)])
    t = tree(asked)
    t.stop_seconds["c"] = 3.0
    t.crash("b")
    t.crash("a")
    t.advance(3)
    assert t.take() == ["stop c 1", "start a 2", "start b 2", "start c 2"]
    assert [f.child for f in asked.failures] == ["b"]


def test_a_member_terminated_by_hand_leaves_the_plan() -> None:
    t = tree(Asked(lambda _, siblings: [stop(siblings), start(siblings)]))
    t.stop_seconds["c"] = 3.0
    t.crash("b")
    t.call(m.Verb.TERMINATE_CHILD, "", "a")
    t.advance(3)
    assert t.take() == ["stop c 1", "stop a 1", "start b 2", "start c 2"]


def test_the_tree_ends_in_the_middle_of_a_plan() -> None:
    t = tree(Rolling(), outcomes={"a": [UP, HANGS]})
    t.crash("b")
    assert t.take() == ["start b 2", "stop a 1", "start a 2"]
    t.halt()
    assert t.take() == ["stop c 1", "stop b 2", "stop a 2", "tree ended"]


def test_backoff_comes_before_the_first_start_and_the_strategy_is_asked_anew_after_it() -> None:
    asked = Asked(lambda _, siblings: [stop(siblings), start(siblings)])
    backoff = rv.Backoff(initial=2, maximum=2, jitter="none", first_delay_zero=False)  # type: ignore[arg-type]
    t = tree(asked, backoff=backoff, period=1000, start_timeout=1.0)
    t.crash("b")
    assert t.take() == ["stop c 1", "stop a 1"]
    t.advance(2)
    assert t.take() == ["start a 2", "start b 2", "start c 2"]
    assert len(asked.failures) == 2


# --- strategies that go wrong ------------------------------------------------------------------------


def boom(*_: object) -> Iterable[Step]:
    raise ValueError("no idea")


def half(*_: object) -> Iterable[Step]:
    yield stop("a")
    raise ValueError("half way")


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (boom, "raised ValueError: no idea"),
        (half, "raised ValueError: half way"),
        (lambda *_: None, "plan() must return steps, not None"),
        (lambda *_: 3, "plan() must return steps, not 3"),
        (lambda *_: ["a"], "plan() gave 'a'; steps are made by stop, start, wait_serving, ..."),
        (lambda *_: [start("nobody")], "Start names 'nobody'; there are: a, b, c"),
        (lambda *_: [wait_serving("nobody")], "WaitServing names 'nobody'; there are: a, b, c"),
        (
            lambda *_: itertools.repeat(in_place("x")),
            "the plan has no end: more than 16 steps for 3 children",
        ),
        (lambda *_: [start("b"), start("b")], "Start names 'b' twice in one plan"),
        (
            lambda *_: [start(itertools.repeat("b"))],
            "ids='...': has no end: more than 2000000 ids in one step",
        ),
        (lambda *_: [stop(["a", "a"])], "Stop names 'a' twice in one plan"),
        (
            lambda *_: [start("b", concurrency=0)],
            "concurrency=0: must be a whole number of concurrent starts, 1 or more",
        ),
        (
            lambda *_: [wait_serving("b", timeout=0)],
            "timeout=0: must be a number of seconds, more than 0, and finite",
        ),
    ],
)
def test_a_strategy_that_goes_wrong_is_recorded_and_the_child_is_restarted_by_itself(
    plan: Plan, problem: str
) -> None:
    t = tree(Asked(plan))
    t.crash("b")
    assert t.take() == [f"strategy failed: Asked: {problem}; 'b' is restarted by itself", "start b 2"]
    assert leaves(t) == ["SERVING"] * 3


def test_a_strategy_that_goes_wrong_again_and_again_is_within_the_intensity() -> None:
    t = tree(Asked(boom), intensity=2)
    for _ in range(3):
        t.crash("b")
    assert t.ended is not None
    assert t.ended.gave_up == "3 restarts within 5 s, intensity is 2"


def test_a_strategy_asked_too_often_over_one_fault_is_stopped_asking() -> None:
    asked = Asked(lambda *_: [in_place("try")])
    t = tree(asked)
    t.crash("b")
    (problem, restart) = t.take()
    assert problem.startswith(
        "strategy failed: Asked: was asked 10 times over steps that fail, and nothing came"
    )
    assert restart == "start b 2"
    assert len(asked.failures) == 10
    t.crash("b")  # another fault, another chance
    assert len(asked.failures) == 20


def test_two_children_that_blame_each_other_are_not_restarted_forever() -> None:
    other = {"a": "b", "b": "a"}
    asked = Asked(lambda failure, _: [wait_serving(other.get(failure.child, "a"), timeout=1)])
    t = tree(asked)
    t.call(m.Verb.PAUSE, "", "a")
    t.call(m.Verb.PAUSE, "", "b")
    t.crash("c")
    t.advance(100)
    assert any(line.startswith("strategy failed: Asked: was asked 10 times") for line in t.take())


# --- quorum and rolling ----------------------------------------------------------------------------------


def test_above_the_quorum_only_the_failed_one_comes_back() -> None:
    t = tree(Quorum(2), outcomes={"b": [UP, HANGS]})
    t.crash("b")
    assert t.take() == ["start b 2"]


def test_below_the_quorum_all_are_restarted() -> None:
    t = tree(Quorum(2), outcomes={"b": [UP, HANGS]})
    t.crash("b")
    t.take()
    t.crash("c")
    assert t.take() == ["stop b 2", "stop a 1", "start a 2", "start b 3", "start c 2"]
    assert leaves(t) == ["SERVING"] * 3


def test_without_replacement_the_failed_one_stays_down_until_the_quorum_is_lost() -> None:
    t = tree(Quorum(2, replace=False))
    t.crash("b")
    assert t.take() == []
    t.crash("a")
    assert t.take() == ["stop c 1", "start a 2", "start b 2", "start c 2"]


def test_a_quorum_of_none_is_refused() -> None:
    with pytest.raises(rv.SpecError, match=r"quorum\.k=0: must be a whole number of children, 1 or more"):
        Quorum(0)


def test_rolling_restarts_one_at_a_time_each_once_the_one_before_serves() -> None:
    t = tree(Rolling(), outcomes={each: [UP, HANGS] for each in "abc"})
    t.crash("b")
    assert t.take() == ["start b 2"]
    t.feed(m.Started("b", 2))
    assert t.take() == ["stop a 1", "start a 2"]
    t.feed(m.Started("a", 2))
    assert t.take() == ["stop c 1", "start c 2"]
    t.feed(m.Started("c", 2))
    assert leaves(t) == ["SERVING"] * 3


def test_rolling_skips_children_that_are_down() -> None:
    t = tree(Rolling())
    t.call(m.Verb.TERMINATE_CHILD, "", "a")
    t.take()
    t.crash("b")
    assert t.take() == ["start b 2", "stop c 1", "start c 2"]


# --- specs ------------------------------------------------------------------------------------------


def test_a_strategy_is_found_by_its_registered_name() -> None:
    assert SupervisorSpec(strategy="rolling").strategy == Rolling()
    assert SupervisorSpec(strategy="one_for_all").strategy is rv.Strategy.ONE_FOR_ALL


@pytest.mark.parametrize("wrong", ["all_for_one", "ONE_FOR_ALL", 3, None, Rolling, object()])
def test_what_is_no_strategy_is_refused(wrong: Any) -> None:
    with pytest.raises(rv.SpecError, match=r"^strategy=") as refused:
        SupervisorSpec(strategy=wrong)
    assert refused.value.term == "invalid_strategy"


def test_otps_strategies_are_what_the_public_protocol_says() -> None:
    t = tree(rv.Strategy.REST_FOR_ONE)
    planner = t.core.root.spec.planner
    assert isinstance(planner, rv.RestartStrategy)
    siblings = SiblingView(t.core.root.children)
    assert planner.plan(Failure("b", BOOM), siblings) == (Stop(("b", "c")), Start(("b", "c")))
    assert siblings["b"].serving
    assert list(siblings) == ["a", "b", "c"]
