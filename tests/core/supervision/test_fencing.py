"""Late, repeated and unknown events change nothing; a start waits until its predecessor is proven gone."""

from __future__ import annotations

from typing import Any

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor.faults import NORMAL, FaultClass
from rayvisor.specs import ChildSpec, SupervisorSpec
from rayvisor.testing import BOOM, HANGS, NOTHING, VirtualTree, fails, fault_of


def tree(*names: str, outcomes: Any = None, kind: Any = NOTHING, **flags: Any) -> VirtualTree:
    flags = {"intensity": 5} | flags
    children = [ChildSpec(id=name, start=kind, recoveries=1) for name in names]
    made = VirtualTree(SupervisorSpec(children=children, **flags), outcomes=outcomes)
    made.take()
    return made


def state(sup: VirtualTree) -> list[tuple[str, str, int]]:
    return [(path, str(child.configuration), child.incarnation) for path, child in sup.core.children.items()]


# --- late and repeated ----------------------------------------------------------------------------


def test_a_late_start_is_killed() -> None:
    sup = tree("a")
    sup.crash("a")
    sup.take()
    before = state(sup)
    assert sup.feed(m.Started("a", 1)) == [m.Kill("a", 1)]
    assert state(sup) == before


def test_a_start_of_a_child_that_is_gone_is_killed() -> None:
    sup = tree("a")
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    sup.call(m.Verb.DELETE_CHILD, "", "a")
    assert sup.feed(m.Started("a", 1)) == [m.Kill("a", 1)]


def test_a_start_that_was_being_stopped_is_not_taken_for_one_that_serves() -> None:
    sup = tree("a")
    sup.outcomes["a"] = [HANGS]
    sup.stop_seconds["a"] = None
    sup.crash("a")
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    assert sup.feed(m.Started("a", 2)) == []
    assert sup.leaf("a") == "STOPPING"


@pytest.mark.parametrize(
    "late",
    [
        m.Exited("a", 1, BOOM),
        m.Exited("a", 1, BOOM, gone=False),
        m.StartFailed("a", 1, BOOM),
        m.Ignored("a", 1),
        m.Gone("a", 1),
        m.Progressed("a", 1),
        m.Reported("a", 1, "suspect"),
        m.Exited("nobody", 1, BOOM),
        m.Exited("a", 99, BOOM),
        m.TimerFired(12345),
    ],
)
def test_events_of_another_incarnation_change_nothing(late: m.Event) -> None:
    sup = tree("a")
    sup.crash("a")
    before = state(sup)
    assert sup.feed(late) == []
    assert state(sup) == before


def test_repeats_of_one_end_count_once() -> None:
    sup = tree("a", intensity=1)
    for _ in range(5):
        sup.feed(m.Exited("a", 1, BOOM))
    assert sup.of(m.Start)[-1].incarnation == 2
    assert sup.ended is None


def test_a_repeat_with_another_reason_changes_nothing_either() -> None:
    sup = tree("a")
    sup.crash("a", gone=False)
    assert sup.feed(m.Exited("a", 1, NORMAL, gone=False)) == []
    sup.prove("a")
    assert sup.of(m.Start)[-1].predecessor == BOOM


def test_after_the_tree_has_ended_starts_are_killed_calls_refused_and_all_else_ignored() -> None:
    sup = tree("a")
    sup.halt()
    assert sup.feed(m.Started("a", 1)) == [m.Kill("a", 1)]
    assert sup.feed(m.Exited("a", 1, BOOM)) == []
    assert sup.feed(m.Halt()) == []
    assert sup.feed(m.Boot()) == []
    reply = sup.call(m.Verb.WHICH_CHILDREN)
    assert reply is not None
    assert type(reply.error).__name__ == "SupervisorStoppedError"


def test_numbers_are_not_used_twice_when_a_child_is_added_again() -> None:
    sup = tree("a")
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    sup.call(m.Verb.DELETE_CHILD, "", "a")
    sup.take()
    sup.call(m.Verb.START_CHILD, "", ChildSpec(id="a", start=NOTHING))
    assert sup.take() == ["start a 2"]


def test_numbers_are_not_used_twice_under_a_restarted_supervisor() -> None:
    inner = SupervisorSpec(children=[ChildSpec(id="a", start=NOTHING)], intensity=0)
    sup = VirtualTree(SupervisorSpec(children=[ChildSpec(id="s", start=inner)]))
    sup.take()
    sup.crash("s/a")
    assert sup.take() == ["start s/a 2"]


# --- proof ----------------------------------------------------------------------------------------


def test_a_restart_waits_for_the_proof_that_the_predecessor_is_gone() -> None:
    sup = tree("a")
    sup.crash("a", gone=False)
    assert sup.take() == ["clean a 1"]
    assert sup.leaf("a") == "STOPPING"
    sup.prove("a")
    assert sup.take() == ["start a 2"]


def test_a_failed_start_is_cleaned_up_before_the_next() -> None:
    sup = tree("a")
    sup.outcomes["a"] = [fails(gone=False)]
    sup.crash("a")
    assert sup.take() == ["start a 2", "clean a 2"]
    sup.prove("a")
    assert sup.take() == ["start a 3"]


def test_a_group_starts_only_when_the_failed_one_is_proven_gone_too() -> None:
    sup = tree("a", "b", strategy="one_for_all")
    sup.crash("a", gone=False)
    assert sup.take() == ["stop b 1", "clean a 1"]
    sup.prove("a")
    assert sup.take() == ["start a 2", "start b 2"]


def test_the_tree_has_not_ended_before_the_last_proof() -> None:
    sup = tree("a", intensity=0)
    sup.crash("a", gone=False)
    assert sup.ended is None
    sup.prove("a")
    assert sup.ended is not None


def test_a_stop_during_the_proof_waits_for_it_and_prevents_the_restart() -> None:
    sup = tree("a")
    sup.crash("a", gone=False)
    assert sup.call(m.Verb.TERMINATE_CHILD, "", "a") is None
    sup.take()
    sup.prove("a")
    assert sup.take() == []
    assert sup.replies[1].error is None
    assert sup.leaf("a") == "STOPPED"


# --- reports --------------------------------------------------------------------------------------


def test_a_suspect_is_not_restarted_and_serves_again_when_it_answers() -> None:
    sup = tree("a")
    sup.feed(m.Reported("a", 1, "suspect"))
    assert sup.leaf("a") == "SUSPECT"
    sup.feed(m.Reported("a", 1, "clear"))
    assert sup.leaf("a") == "SERVING"
    assert sup.take() == []


def test_a_report_cannot_cause_what_only_the_core_decides() -> None:
    sup = tree("a")
    for event in ("fault", "exit", "stop", "started", "failed"):
        assert sup.feed(m.Reported("a", 1, event)) == []
    assert sup.leaf("a") == "SERVING"


class _Engine:
    kind = "engine"


def test_an_engine_that_does_not_recover_in_place_is_ended_and_restarted() -> None:
    sup = tree("a", kind=_Engine())
    sup.feed(m.Reported("a", 1, "unhealthy"))
    assert sup.take() == ["act a retry"]
    assert sup.leaf("a") == "RETRYING"
    lost = fault_of(FaultClass.FATAL, "still sick").fault
    sup.feed(m.Acted("a", 1, ok=False, fault=lost))
    assert sup.take() == ["clean a 1"]
    sup.prove("a")
    assert sup.take() == ["start a 2"]
    assert sup.of(m.Start)[-1].predecessor.fault == lost


def test_a_clock_that_goes_back_is_ignored() -> None:
    sup = tree("a")
    sup.core.handle(m.Reported("a", 1, "suspect"), 50.0)
    sup.core.handle(m.Reported("a", 1, "clear"), 10.0)
    assert sup.core.now == 50.0
