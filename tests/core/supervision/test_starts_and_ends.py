"""A tree comes up, and goes down from any state."""

from __future__ import annotations

from typing import Any

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor.faults import FaultClass
from rayvisor.specs import Backoff, ChildSpec, Jitter, Restart, Strategy, SupervisorSpec
from rayvisor.testing import HANGS, IGNORES, NOTHING, UP, VirtualTree, fails, fault_of


def child(name: str, **more: Any) -> ChildSpec:
    return ChildSpec(id=name, start=NOTHING, **more)


def tree(*children: ChildSpec, outcomes: Any = None, **flags: Any) -> VirtualTree:
    flags = {"intensity": 5} | flags
    return VirtualTree(SupervisorSpec(children=children, **flags), outcomes=outcomes)


# --- coming up ------------------------------------------------------------------------------------


def test_each_child_is_up_before_the_next_one_starts() -> None:
    sup = tree(child("a"), child("b"), outcomes={"a": [HANGS]})
    assert sup.take() == ["start a 1"]
    sup.feed(m.Started("a", 1))
    assert sup.take() == ["start b 1", "tree up"]


def test_a_subtree_is_up_before_its_next_sibling_starts() -> None:
    inner = SupervisorSpec(children=[child("x"), child("y")])
    sup = tree(ChildSpec(id="s", start=inner), child("b"))
    assert sup.take() == ["start s/x 1", "start s/y 1", "start b 1", "tree up"]


def test_as_many_children_start_side_by_side_as_max_concurrent_starts() -> None:
    sup = tree(
        *map(child, "abcde"),
        max_concurrent_starts=2,
        outcomes={name: [UP._replace(after=1.0)] for name in "abcde"},
    )
    assert sup.take() == ["start a 1", "start b 1"]
    sup.advance(1.0)
    assert sup.take() == ["start c 1", "start d 1"]
    sup.advance(2.0)
    assert sup.take() == ["start e 1", "tree up"]


def test_a_tree_without_children_is_up_at_once() -> None:
    assert tree().take() == ["tree up"]


def test_a_thousand_empty_supervisors_come_up_and_go_down() -> None:
    empty = [ChildSpec(id=str(number), start=SupervisorSpec()) for number in range(1000)]
    sup = tree(*empty)
    assert sup.take() == ["tree up"]
    sup.halt()
    assert sup.take() == ["tree ended"]


def test_a_failed_first_start_ends_what_is_up_in_reverse_order() -> None:
    sup = tree(*map(child, "abcd"), outcomes={"c": [fails(fault_of(FaultClass.FATAL, "no memory"))]})
    assert sup.take() == ["start a 1", "start b 1", "start c 1", "stop b 1", "stop a 1", "tree ended"]
    assert sup.ended is not None
    assert not sup.ended.started
    assert sup.ended.origin == "c"
    assert sup.ended.exit.fault is not None
    assert sup.ended.exit.fault.root.message == "no memory"
    assert len(sup.core.root.window) == 0


def test_a_failed_first_start_deep_below_names_the_child_that_failed() -> None:
    inner = SupervisorSpec(children=[child("x"), child("y")])
    sup = tree(child("a"), ChildSpec(id="s", start=inner), outcomes={"s/y": [fails()]})
    assert sup.take() == ["start a 1", "start s/x 1", "start s/y 1", "stop s/x 1", "stop a 1", "tree ended"]
    assert sup.ended is not None
    assert sup.ended.origin == "s/y"


def test_a_failed_start_side_by_side_ends_the_others_that_still_start() -> None:
    sup = tree(
        *map(child, "abc"), max_concurrent_starts=3, outcomes={"a": [HANGS], "b": [fails()], "c": [HANGS]}
    )
    assert sup.take() == ["start a 1", "start b 1", "start c 1", "stop c 1", "stop a 1", "tree ended"]


def test_a_start_that_chooses_not_to_run_keeps_its_spec_and_the_tree_goes_on() -> None:
    sup = tree(
        child("a"), child("t", restart="temporary"), child("b"), outcomes={"a": [IGNORES], "t": [IGNORES]}
    )
    assert sup.take() == ["start a 1", "start t 1", "start b 1", "tree up"]
    assert sup.leaf("a") == "COMPLETED"
    assert sup.leaf("t") == ""


def test_one_for_one_restarts_a_member_while_others_still_come_up() -> None:
    sup = tree(child("a"), child("b"), outcomes={"b": [HANGS]})
    sup.take()
    sup.crash("a")
    assert sup.take() == ["start a 2"]


def test_one_for_all_lets_a_death_wait_until_all_have_started() -> None:
    sup = tree(child("a"), child("b"), outcomes={"b": [HANGS]}, strategy="one_for_all")
    sup.take()
    sup.crash("a")
    assert sup.take() == []
    sup.feed(m.Started("b", 1))
    assert sup.take() == ["tree up", "stop b 1", "start a 2", "start b 2"]


def test_a_supervisor_whose_spec_is_made_at_its_start_asks_for_it_each_time() -> None:
    class Init:
        kind = "supervisor"

    sup = tree(ChildSpec(id="s", start=Init()), outcomes={"s": [HANGS, HANGS]})
    sup.feed(m.Prepared("s", 1, SupervisorSpec(children=[child("x")], intensity=0)))
    assert sup.take() == ["start s 1", "start s/x 1", "tree up"]
    sup.crash("s/x")
    assert sup.take() == ["start s 2"]
    sup.feed(m.Prepared("s", 2, SupervisorSpec(children=[child("y")])))
    assert sup.take() == ["start s/y 1"]


# --- going down -----------------------------------------------------------------------------------


def test_children_are_stopped_one_at_a_time_in_reverse_order() -> None:
    inner = SupervisorSpec(children=[child("x"), child("y")])
    sup = tree(child("a"), ChildSpec(id="s", start=inner), child("b"))
    sup.stop_seconds = {"s/y": 2.0}
    sup.take()
    sup.halt()
    assert sup.take() == ["stop b 1", "stop s/y 1"]
    sup.advance(2.0)
    assert sup.take() == ["stop s/x 1", "stop a 1", "tree ended"]


def _into(sup: VirtualTree, phase: str) -> None:
    """Bring a tree of a, w (with a backoff), b (whose first start hangs) and c to a phase."""
    if phase == "before the boot":
        return
    sup.feed(m.Boot())
    if phase == "a start in progress":
        return
    sup.feed(m.Started("b", 1))
    if phase == "a restart's start in progress":
        sup.outcomes["c"] = [HANGS]
        sup.crash("c")
    elif phase == "backoff":
        sup.crash("w")
    elif phase == "a proof pending":
        sup.crash("c", gone=False)
    elif phase == "a stop in progress":
        sup.stop_seconds["c"] = 1.0
        sup.call(m.Verb.TERMINATE_CHILD, "", "c")


PHASES = [
    "before the boot",
    "a start in progress",
    "up",
    "a restart's start in progress",
    "backoff",
    "a proof pending",
    "a stop in progress",
]


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
@pytest.mark.parametrize("phase", PHASES)
def test_a_halt_ends_the_tree_from_wherever_it_is(phase: str, strategy: Strategy) -> None:
    slow = Backoff(initial=9.0, maximum=9.0, jitter=Jitter.NONE, first_delay_zero=False)
    children = [child("a"), child("w", backoff=slow, start_timeout=1.0), child("b"), child("c")]
    sup = VirtualTree(
        SupervisorSpec(strategy=strategy, intensity=5, period=1000.0, children=children),
        outcomes={"b": [HANGS]},
        boot=False,
    )
    _into(sup, phase)
    sup.halt()
    sup.advance(1.0)
    if "c" in sup.live and phase == "a proof pending":
        sup.prove("c")
    assert sup.ended is not None
    assert sup.live == {}
    assert {sup.leaf(name) for name in "awbc"} <= {"STOPPED", ""}
    sup.take()
    sup.advance(1000.0)
    assert sup.take() == []


def test_a_group_restart_that_is_halted_starts_nothing_more() -> None:
    sup = tree(*map(child, "abc"), strategy="one_for_all")
    sup.stop_seconds = {"b": 1.0}
    sup.take()
    sup.crash("a")
    sup.halt()
    sup.advance(1.0)
    assert sup.take() == ["stop c 1", "stop b 1", "tree ended"]


def test_a_death_while_the_tree_ends_starts_nothing() -> None:
    sup = tree(child("a"), child("b"))
    sup.stop_seconds = {"b": 1.0}
    sup.take()
    sup.halt()
    sup.crash("a")
    sup.advance(1.0)
    assert sup.take() == ["stop b 1", "tree ended"]


def test_a_tree_halted_while_it_comes_up_reports_that_it_never_was_up() -> None:
    sup = tree(child("a"), outcomes={"a": [HANGS]})
    sup.halt()
    assert sup.ended is not None
    assert not sup.ended.started
    assert sup.ended.gave_up == ""


def test_every_stop_carries_the_childs_own_way_of_ending() -> None:
    children = [child("a", shutdown=2.0), child("b", restart=Restart.TEMPORARY), child("c", shutdown=0)]
    sup = tree(*children)
    sup.halt()
    assert [(stop.child, stop.shutdown.seconds) for stop in sup.of(m.Stop)] == [
        ("c", 0),
        ("b", 5.0),
        ("a", 2.0),
    ]
