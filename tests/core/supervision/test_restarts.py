"""Restart types, strategies and intensity."""

from __future__ import annotations

from typing import Any

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor.faults import KILLED, NORMAL, SHUTDOWN, Exit, ExitKind, FaultClass
from rayvisor.specs import AutoShutdown, ChildSpec, Restart, SupervisorSpec
from rayvisor.testing import BOOM, HANGS, IGNORES, NOTHING, VirtualTree, fails, fault_of

WITH_WORD = Exit(ExitKind.SHUTDOWN, "x")


def child(name: str, **more: Any) -> ChildSpec:
    return ChildSpec(id=name, start=NOTHING, **more)


def tree(*children: ChildSpec, outcomes: Any = None, **flags: Any) -> VirtualTree:
    made = VirtualTree(SupervisorSpec(children=children, **flags), outcomes=outcomes)
    made.take()
    return made


# --- restart types --------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_", [NORMAL, SHUTDOWN, WITH_WORD, KILLED, BOOM])
def test_a_permanent_child_is_restarted_however_it_ended(exit_: Exit) -> None:
    sup = tree(child("a"))
    sup.crash("a", exit_)
    assert sup.take() == ["start a 2"]


@pytest.mark.parametrize("exit_", [NORMAL, SHUTDOWN, WITH_WORD])
def test_a_transient_child_that_ended_normally_rests_and_keeps_its_spec(exit_: Exit) -> None:
    sup = tree(child("a", restart="transient"))
    sup.crash("a", exit_)
    assert sup.take() == []
    assert sup.leaf("a") == "COMPLETED"


@pytest.mark.parametrize("exit_", [KILLED, BOOM])
def test_a_transient_child_that_ended_abnormally_is_restarted(exit_: Exit) -> None:
    sup = tree(child("a", restart="transient"))
    sup.crash("a", exit_)
    assert sup.take() == ["start a 2"]


@pytest.mark.parametrize("exit_", [NORMAL, KILLED, BOOM])
def test_a_temporary_child_is_never_restarted_and_its_spec_goes(exit_: Exit) -> None:
    sup = tree(child("a", restart="temporary"))
    sup.crash("a", exit_)
    assert sup.take() == []
    assert sup.leaf("a") == ""


def test_an_end_without_a_restart_is_not_counted_and_disturbs_no_sibling() -> None:
    sup = tree(child("a", restart="transient"), child("b"), strategy="one_for_all", intensity=0)
    sup.crash("a", NORMAL)
    assert sup.take() == []
    assert sup.leaf("b") == "SERVING"


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
def test_a_child_that_ray_restarts_is_followed_and_never_counted(restart: str, strategy: str) -> None:
    sup = tree(child("a", restart=restart), child("b"), strategy=strategy, intensity=0)
    for incarnation in (2, 3, 4):
        sup.crash("a", BOOM._replace(restarted_by_ray=True))
        assert sup.take() == [f"start a {incarnation}"]
    assert sup.leaf("b") == "SERVING"


def test_a_child_that_ray_restarts_waits_for_the_group_restart_under_way() -> None:
    sup = tree(*map(child, "abc"), strategy="rest_for_one")
    sup.outcomes["b"] = [HANGS]
    sup.crash("b")
    sup.crash("a", BOOM._replace(restarted_by_ray=True))
    assert sup.take() == ["stop c 1", "start b 2"]
    sup.feed(m.Started("b", 2))
    assert sup.take() == ["start c 2", "start a 2"]


# --- strategies -----------------------------------------------------------------------------------


def test_one_for_all_stops_the_others_in_reverse_and_starts_all_in_order() -> None:
    sup = tree(*map(child, "abcd"), strategy="one_for_all")
    sup.crash("b")
    assert sup.take() == [
        "stop d 1", "stop c 1", "stop a 1",
        "start a 2", "start b 2", "start c 2", "start d 2",
    ]  # fmt: skip


def test_rest_for_one_restarts_the_failed_child_and_those_after_it() -> None:
    sup = tree(*map(child, "abc"), strategy="rest_for_one")
    sup.crash("b")
    assert sup.take() == ["stop c 1", "start b 2", "start c 2"]


def test_a_member_is_not_started_before_the_one_before_it_is_up() -> None:
    sup = tree(*map(child, "ab"), strategy="one_for_all")
    sup.outcomes["a"] = [HANGS]
    sup.crash("b")
    assert sup.take() == ["stop a 1", "start a 2"]
    sup.feed(m.Started("a", 2))
    assert sup.take() == ["start b 2"]


def test_a_sibling_that_died_before_the_group_was_stopped_is_absorbed() -> None:
    sup = tree(*map(child, "abc"), strategy="one_for_all", intensity=1)
    sup.stop_seconds["c"] = 1.0
    sup.crash("a")
    sup.crash("b")
    sup.advance(1.0)
    assert sup.take() == ["stop c 1", "start a 2", "start b 2", "start c 2"]
    assert sup.ended is None


def test_a_death_while_the_group_starts_is_judged_after_it() -> None:
    sup = tree(*map(child, "ab"), strategy="one_for_all", intensity=2)
    sup.outcomes["b"] = [HANGS]
    sup.crash("b")
    sup.take()
    sup.crash("a")  # up again, while b still starts
    assert sup.take() == []
    sup.feed(m.Started("b", 2))
    assert sup.take() == ["stop b 2", "start a 3", "start b 3"]


def test_a_failed_start_in_a_group_is_retried_for_the_whole_group() -> None:
    sup = tree(*map(child, "abc"), strategy="one_for_all", intensity=5)
    sup.outcomes["b"] = [fails()]
    sup.crash("a")
    assert sup.take() == [
        "stop c 1", "stop b 1", "start a 2", "start b 2",
        "stop a 2", "start a 3", "start b 3", "start c 2",
    ]  # fmt: skip


def test_a_restart_that_chooses_not_to_run_leaves_the_child_at_rest() -> None:
    sup = tree(child("a"))
    sup.outcomes["a"] = [IGNORES]
    sup.crash("a")
    assert sup.leaf("a") == "COMPLETED"
    assert sup.ended is None


# --- intensity ------------------------------------------------------------------------------------


def test_as_many_restarts_as_intensity_are_tolerated_and_one_more_is_not() -> None:
    sup = tree(child("a"), child("b"), intensity=2)
    sup.crash("a")
    sup.crash("a")
    sup.take()
    sup.crash("a")
    assert sup.take() == ["stop b 1", "tree ended"]
    assert sup.leaf("a") == "EXHAUSTED"
    assert sup.leaf("b") == "STOPPED"
    assert sup.ended is not None
    assert sup.ended.gave_up == "3 restarts within 5 s, intensity is 2"


def test_intensity_zero_tolerates_none() -> None:
    sup = tree(child("a"), intensity=0)
    sup.crash("a")
    assert sup.take() == ["tree ended"]


def test_a_restart_exactly_as_old_as_the_period_still_counts() -> None:
    sup = tree(child("a"), intensity=1, period=5.0)
    sup.crash("a")
    sup.advance(5.0)
    sup.crash("a")
    assert sup.ended is not None


def test_a_restart_older_than_the_period_counts_no_more() -> None:
    sup = tree(child("a"), intensity=1, period=5.0)
    sup.crash("a")
    sup.advance(5.001)
    sup.crash("a")
    assert sup.ended is None


def test_a_group_restart_counts_once() -> None:
    sup = tree(*map(child, "abc"), strategy="one_for_all", intensity=1)
    sup.crash("b")
    assert sup.ended is None


def test_each_failed_attempt_counts_once_more() -> None:
    sup = tree(child("a"), intensity=3)
    sup.outcomes["a"] = [fails(), fails(), fails()]
    sup.crash("a")
    assert sup.take() == ["start a 2", "start a 3", "start a 4", "tree ended"]


def test_the_window_of_a_restarted_supervisor_is_empty() -> None:
    inner = SupervisorSpec(children=[child("a")], intensity=1)
    sup = tree(ChildSpec(id="s", start=inner), intensity=5)
    for _ in range(2):
        sup.crash("s/a")
    sup.take()
    sup.crash("s/a")
    assert sup.take() == ["start s/a 4"]
    assert sup.ended is None


# --- escalation, faults that no restart cures -----------------------------------------------------


def test_the_parent_restarts_a_supervisor_that_gave_up_with_all_below_it() -> None:
    inner = SupervisorSpec(children=[child("a"), child("b")], intensity=0)
    sup = tree(ChildSpec(id="s", start=inner), child("z"), strategy="one_for_all")
    sup.crash("s/a")
    assert sup.take() == ["stop s/b 1", "stop z 1", "start s/a 2", "start s/b 2", "start z 2"]


def test_a_transient_supervisor_that_gave_up_is_not_restarted_and_that_is_reported() -> None:
    inner = SupervisorSpec(children=[child("a")], intensity=0)
    sup = tree(ChildSpec(id="s", start=inner, restart=Restart.TRANSIENT))
    sup.crash("s/a")
    assert sup.take() == []
    assert sup.leaf("s") == "COMPLETED"
    assert [(d.child, d.decision) for d in sup.of(m.Decided)] == [("s/a", "give_up"), ("s", "rest")]


def test_a_permanent_fault_is_not_retried_and_travels_up_with_its_cause() -> None:
    wrong = fault_of(FaultClass.PERMANENT, "no such model")
    inner = SupervisorSpec(children=[child("a")], intensity=9)
    sup = tree(ChildSpec(id="s", start=inner), child("z"), intensity=9)
    sup.crash("s/a", wrong)
    assert sup.take() == ["stop z 1", "tree ended"]
    assert sup.leaf("s/a") == "FAILED"
    assert sup.ended is not None
    assert sup.ended.exit.fault == wrong.fault
    assert sup.ended.origin == "s"
    assert sup.ended.gave_up == "no restart can cure the fault"


def test_a_permanent_fault_in_a_restart_is_not_retried() -> None:
    sup = tree(child("a"), intensity=9)
    sup.outcomes["a"] = [fails(fault_of(FaultClass.PERMANENT))]
    sup.crash("a")
    assert sup.take() == ["start a 2", "tree ended"]
    assert sup.leaf("a") == "FAILED"


def test_the_next_incarnation_gets_the_exit_of_the_one_before() -> None:
    sup = tree(child("a"))
    why = fault_of(FaultClass.FATAL, "out of memory")
    sup.crash("a", why)
    first, second = sup.of(m.Start)
    assert first.predecessor is None
    assert second.predecessor == why


# --- automatic shutdown ---------------------------------------------------------------------------


def test_any_significant_end_ends_the_supervisor() -> None:
    sup = tree(
        child("a", restart="transient", significant=True),
        child("b"),
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
    )
    sup.crash("a", NORMAL)
    assert sup.take() == ["stop b 1", "tree ended"]
    assert sup.ended is not None
    assert sup.ended.gave_up == ""


def test_all_significant_waits_for_the_last_one_also_when_proofs_come_late() -> None:
    both = [child(name, restart="transient", significant=True) for name in "ab"]
    sup = tree(*both, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT)
    sup.crash("a", NORMAL, gone=False)
    assert sup.ended is None
    sup.crash("b", NORMAL, gone=False)
    sup.prove("a")
    sup.prove("b")
    assert sup.ended is not None


def test_a_significant_child_terminated_by_hand_ends_nothing() -> None:
    sup = tree(child("a", restart="transient", significant=True), auto_shutdown=AutoShutdown.ANY_SIGNIFICANT)
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    assert sup.ended is None


# --- killed supervisors ---------------------------------------------------------------------------


def test_children_of_a_killed_supervisor_end_side_by_side_before_it_is_restarted() -> None:
    inner = SupervisorSpec(children=[child("a"), child("b")])
    sup = tree(ChildSpec(id="s", start=inner))
    sup.stop_seconds = {"s/a": 2.0, "s/b": 1.0}
    sup.feed(m.Exited("s", 1, KILLED))
    assert sup.take() == ["stop s/b 1", "stop s/a 1"]
    sup.advance(2.0)
    assert sup.take() == ["start s/a 2", "start s/b 2"]


def test_a_supervisor_that_does_not_end_in_time_is_killed_with_all_below_it() -> None:
    inner = SupervisorSpec(children=[child("a"), child("b")])
    sup = tree(ChildSpec(id="s", start=inner, shutdown=3.0))
    sup.stop_seconds = {"s/a": 1.0, "s/b": 60.0}
    sup.call(m.Verb.TERMINATE_CHILD, "", "s")
    assert sup.take() == ["stop s/b 1"]
    sup.advance(3.0)
    assert sup.take() == ["stop s/a 1"]
    sup.advance(57.0)
    assert sup.leaf("s") == "STOPPED"
