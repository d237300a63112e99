"""The verbs on a supervisor: answers, errors, and that each call is answered exactly once."""

from __future__ import annotations

from typing import Any

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.calls import ChildCounts, ChildStatus
from rayvisor.errors import (
    AlreadyPresentError,
    AlreadyStartedError,
    ChildRestartingError,
    ChildRunningError,
    ChildStartError,
    SpecError,
    SupervisorStoppedError,
    TemplateError,
    UnknownChildError,
)
from rayvisor.faults import NORMAL
from rayvisor.specs import Backoff, ChildSpec, Instance, Jitter, Strategy, SupervisorSpec
from rayvisor.testing import BOOM, HANGS, IGNORES, NOTHING, VirtualTree, fails

SLOW = Backoff(initial=9.0, maximum=9.0, jitter=Jitter.NONE, first_delay_zero=False)


def child(name: str, **more: Any) -> ChildSpec:
    return ChildSpec(id=name, start=NOTHING, start_timeout=1.0, **more)


def tree(*children: ChildSpec, outcomes: Any = None, **flags: Any) -> VirtualTree:
    flags = {"intensity": 5, "period": 1000.0} | flags
    made = VirtualTree(SupervisorSpec(children=children, **flags), outcomes=outcomes)
    made.take()
    return made


def pool(**template: Any) -> VirtualTree:
    inner = SupervisorSpec(
        strategy=Strategy.SIMPLE_ONE_FOR_ONE,
        children=[child("template", **template)],
        intensity=3,
    )
    return tree(ChildSpec(id="pool", start=inner))


def error(sup: VirtualTree, verb: m.Verb, argument: Any = None, target: str = "") -> Exception | None:
    reply = sup.call(verb, target, argument)
    assert reply is not None
    return reply.error


def value(sup: VirtualTree, verb: m.Verb, argument: Any = None, target: str = "") -> Any:
    reply = sup.call(verb, target, argument)
    assert reply is not None
    assert reply.error is None
    return reply.value


def of(sup: VirtualTree, path: str) -> ChildStatus:
    lines: list[ChildStatus] = value(sup, m.Verb.WHICH_CHILDREN, target=path.rpartition("/")[0])
    return next(line for line in lines if line.path == path)


# --- start_child ----------------------------------------------------------------------------------


def test_a_started_child_is_appended_and_its_path_answered() -> None:
    sup = tree(child("a"))
    assert value(sup, m.Verb.START_CHILD, child("b")) == "b"
    assert sup.take() == ["start b 1"]
    sup.halt()
    assert sup.take() == ["stop b 1", "stop a 1", "tree ended"]


def test_start_child_is_answered_when_the_child_is_up_not_before() -> None:
    sup = tree(outcomes={"b": [HANGS]})
    assert sup.call(m.Verb.START_CHILD, "", child("b")) is None
    sup.feed(m.Started("b", 1))
    assert sup.replies[1].value == "b"


def test_the_supervisor_answers_others_while_a_child_starts() -> None:
    sup = tree(outcomes={"b": [HANGS]})
    sup.call(m.Verb.START_CHILD, "", child("b"))
    assert value(sup, m.Verb.COUNT_CHILDREN) == ChildCounts(1, 0, 0, 1)


def test_an_id_that_is_taken_is_refused() -> None:
    sup = tree(child("a"), child("t", restart="transient"))
    assert isinstance(error(sup, m.Verb.START_CHILD, child("a")), AlreadyStartedError)
    sup.crash("t", NORMAL)
    assert isinstance(error(sup, m.Verb.START_CHILD, child("t")), AlreadyPresentError)


def test_a_start_that_fails_is_reported_and_nothing_is_saved_or_counted() -> None:
    sup = tree(outcomes={"b": [fails()]}, intensity=0)
    found = error(sup, m.Verb.START_CHILD, child("b"))
    assert isinstance(found, ChildStartError)
    assert found.exit == BOOM
    assert sup.leaf("b") == ""
    assert sup.ended is None


def test_a_start_that_chooses_not_to_run_is_saved_unless_temporary() -> None:
    sup = tree(outcomes={"b": [IGNORES], "t": [IGNORES]})
    assert value(sup, m.Verb.START_CHILD, child("b")) is None
    assert value(sup, m.Verb.START_CHILD, child("t", restart="temporary")) is None
    assert (sup.leaf("b"), sup.leaf("t")) == ("COMPLETED", "")


def test_a_spec_that_cannot_work_is_refused_and_nothing_is_saved() -> None:
    sup = tree()
    assert isinstance(error(sup, m.Verb.START_CHILD, "router"), SpecError)
    significant = child("b", restart="transient", significant=True)
    assert isinstance(error(sup, m.Verb.START_CHILD, significant), SpecError)
    assert value(sup, m.Verb.WHICH_CHILDREN) == []


# --- terminate_child ------------------------------------------------------------------------------


def test_a_terminated_child_rests_is_not_restarted_and_keeps_its_spec() -> None:
    sup = tree(child("a"))
    assert value(sup, m.Verb.TERMINATE_CHILD, "a") is None
    assert sup.take() == ["stop a 1"]
    assert sup.leaf("a") == "STOPPED"
    assert value(sup, m.Verb.TERMINATE_CHILD, "a") is None


def test_every_terminate_is_answered_once_when_the_child_is_gone() -> None:
    sup = tree(child("a"))
    sup.stop_seconds["a"] = 1.0
    assert sup.call(m.Verb.TERMINATE_CHILD, "", "a") is None
    assert sup.call(m.Verb.TERMINATE_CHILD, "", "a") is None
    sup.advance(1.0)
    assert [sup.replies[number].error for number in (1, 2)] == [None, None]


def test_terminating_a_child_in_backoff_cancels_its_restart() -> None:
    sup = tree(child("a", backoff=SLOW))
    sup.crash("a")
    assert of(sup, "a").restarting
    value(sup, m.Verb.TERMINATE_CHILD, "a")
    sup.advance(100.0)
    assert sup.take() == []
    assert sup.leaf("a") == "STOPPED"


def test_terminating_a_group_that_waits_leaves_all_of_it_at_rest() -> None:
    sup = tree(child("a", backoff=SLOW), child("b"), strategy="one_for_all")
    sup.crash("a")
    value(sup, m.Verb.TERMINATE_CHILD, "a")
    sup.advance(100.0)
    assert (sup.leaf("a"), sup.leaf("b")) == ("STOPPED", "STOPPED")
    assert value(sup, m.Verb.RESTART_CHILD, "b") == "b"


def test_terminating_a_child_that_starts_stops_that_start() -> None:
    sup = tree(outcomes={"b": [HANGS]})
    sup.call(m.Verb.START_CHILD, "", child("b"))
    assert value(sup, m.Verb.TERMINATE_CHILD, "b") is None
    assert sup.take() == ["start b 1", "stop b 1"]
    assert isinstance(sup.replies[1].error, ChildStartError)


@pytest.mark.parametrize("moment", ["while it is stopped", "while it waits to be started"])
def test_terminating_a_member_of_a_group_restart_leaves_it_down(moment: str) -> None:
    sup = tree(*map(child, "abc"), strategy="one_for_all")
    if moment == "while it is stopped":
        sup.stop_seconds["b"] = 1.0
    else:
        sup.outcomes["a"] = [HANGS]
    sup.crash("c")
    sup.call(m.Verb.TERMINATE_CHILD, "", "b")
    sup.advance(1.0)
    if moment != "while it is stopped":
        sup.feed(m.Started("a", 2))
    assert sup.replies[1].error is None
    assert sup.leaf("b") == "STOPPED"
    assert (sup.leaf("a"), sup.leaf("c")) == ("SERVING", "SERVING")


# --- restart_child, delete_child ------------------------------------------------------------------


def test_restart_child_starts_a_child_at_rest_in_its_old_place() -> None:
    sup = tree(child("a"), child("b"))
    value(sup, m.Verb.TERMINATE_CHILD, "a")
    assert value(sup, m.Verb.RESTART_CHILD, "a") == "a"
    assert [line.id for line in value(sup, m.Verb.WHICH_CHILDREN)] == ["b", "a"]


def test_a_failed_restart_child_is_reported_and_not_retried() -> None:
    sup = tree(child("a"))
    value(sup, m.Verb.TERMINATE_CHILD, "a")
    sup.outcomes["a"] = [fails()]
    assert isinstance(error(sup, m.Verb.RESTART_CHILD, "a"), ChildStartError)
    assert sup.leaf("a") == "STOPPED"
    assert sup.next_timer() is None


@pytest.mark.parametrize("verb", [m.Verb.RESTART_CHILD, m.Verb.DELETE_CHILD])
def test_a_child_must_be_down_to_be_restarted_or_deleted(verb: m.Verb) -> None:
    sup = tree(child("a"), child("w", backoff=SLOW))
    assert isinstance(error(sup, verb, "a"), ChildRunningError)
    sup.crash("w")
    assert isinstance(error(sup, verb, "w"), ChildRestartingError)
    assert isinstance(error(sup, verb, "nobody"), UnknownChildError)


def test_deleting_and_adding_again_moves_a_child_to_the_end() -> None:
    sup = tree(child("a"), child("b"))
    value(sup, m.Verb.TERMINATE_CHILD, "a")
    value(sup, m.Verb.DELETE_CHILD, "a")
    value(sup, m.Verb.START_CHILD, child("a"))
    assert [line.id for line in value(sup, m.Verb.WHICH_CHILDREN)] == ["a", "b"]


def test_a_delete_right_after_a_terminate_waits_for_it() -> None:
    sup = tree(child("a"))
    sup.stop_seconds["a"] = 1.0
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    assert sup.call(m.Verb.DELETE_CHILD, "", "a") is None
    sup.advance(1.0)
    assert [sup.replies[number].error for number in (1, 2)] == [None, None]
    assert sup.leaf("a") == ""


def test_a_restart_right_after_a_terminate_waits_for_it() -> None:
    sup = tree(child("a"))
    sup.stop_seconds["a"] = 1.0
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    assert sup.call(m.Verb.RESTART_CHILD, "", "a") is None
    sup.advance(1.0)
    assert sup.take() == ["stop a 1", "start a 2"]
    assert sup.replies[2].value == "a"


# --- calls and the end ----------------------------------------------------------------------------


def test_calls_under_way_when_the_tree_ends_are_answered() -> None:
    sup = tree(child("a"), outcomes={"b": [HANGS]})
    sup.stop_seconds = {"a": 1.0, "b": 1.0}
    sup.call(m.Verb.START_CHILD, "", child("b"))
    sup.call(m.Verb.TERMINATE_CHILD, "", "a")
    sup.call(m.Verb.DELETE_CHILD, "", "a")
    sup.halt()
    late = error(sup, m.Verb.WHICH_CHILDREN)
    sup.advance(2.0)
    assert isinstance(late, SupervisorStoppedError)
    assert isinstance(sup.replies[1].error, ChildStartError)
    assert sup.replies[2].error is None
    assert isinstance(sup.replies[3].error, SupervisorStoppedError)


def test_a_supervisor_that_does_not_run_refuses_calls() -> None:
    inner = SupervisorSpec(children=[child("x")])
    sup = tree(ChildSpec(id="s", start=inner))
    value(sup, m.Verb.TERMINATE_CHILD, "s")
    assert isinstance(error(sup, m.Verb.WHICH_CHILDREN, target="s"), SupervisorStoppedError)
    assert isinstance(error(sup, m.Verb.WHICH_CHILDREN, target="nowhere"), UnknownChildError)


# --- looking, holding -----------------------------------------------------------------------------


def test_which_children_lists_the_last_started_first() -> None:
    inner = SupervisorSpec(children=[child("x")])
    sup = tree(child("a"), ChildSpec(id="s", start=inner), child("w", backoff=SLOW))
    sup.crash("w")
    lines = value(sup, m.Verb.WHICH_CHILDREN)
    assert [(line.id, line.running, line.restarting, line.supervisor) for line in lines] == [
        ("w", False, True, False),
        ("s", True, False, True),
        ("a", True, False, False),
    ]
    assert value(sup, m.Verb.COUNT_CHILDREN) == ChildCounts(specs=3, active=2, supervisors=1, workers=2)


def test_get_childspec_answers_the_spec() -> None:
    spec = child("a", restart="transient")
    assert value(tree(spec), m.Verb.GET_CHILDSPEC, "a") is spec


def test_a_pause_asked_for_survives_a_restart() -> None:
    sup = tree(child("a"))
    value(sup, m.Verb.PAUSE, "a")
    assert sup.leaf("a") == "REQUESTED"
    sup.crash("a")
    assert sup.leaf("a") == "REQUESTED"
    value(sup, m.Verb.RESUME, "a")
    assert sup.leaf("a") == "SERVING"


def test_a_pause_of_a_supervisor_pauses_all_below_it() -> None:
    inner = SupervisorSpec(children=[child("x"), child("y")])
    sup = tree(ChildSpec(id="s", start=inner), child("b"))
    value(sup, m.Verb.PAUSE, "s")
    assert [sup.leaf(path) for path in ("s/x", "s/y", "b")] == ["REQUESTED", "REQUESTED", "SERVING"]


# --- instances of a template ----------------------------------------------------------------------


def test_nothing_is_started_of_a_template_until_it_is_asked_for() -> None:
    sup = pool()
    assert value(sup, m.Verb.WHICH_CHILDREN, target="pool") == []
    assert value(sup, m.Verb.START_CHILD, Instance("k"), "pool") == "pool/k"
    assert value(sup, m.Verb.START_CHILD, None, "pool") == "pool/1"
    assert sup.take() == ["start pool/k 1", "start pool/1 1"]


def test_an_instance_is_restarted_with_what_it_was_started_with() -> None:
    sup = pool()
    mine = type(NOTHING)("mine")
    value(sup, m.Verb.START_CHILD, Instance("k", mine), "pool")
    sup.crash("pool/k")
    assert [start.spec.start for start in sup.of(m.Start)] == [mine, mine]


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_an_instance_that_ended_for_good_is_removed(restart: str) -> None:
    sup = pool(restart=restart)
    value(sup, m.Verb.START_CHILD, Instance("k"), "pool")
    sup.crash("pool/k", NORMAL)
    assert sup.leaf("pool/k") == ""
    assert value(sup, m.Verb.TERMINATE_CHILD, "k", "pool") is None


def test_instances_end_side_by_side() -> None:
    sup = pool()
    for name in "kl":
        value(sup, m.Verb.START_CHILD, Instance(name), "pool")
    sup.stop_seconds = {"pool/k": 1.0, "pool/l": 1.0}
    sup.take()
    sup.halt()
    assert sorted(sup.take()) == ["stop pool/k 1", "stop pool/l 1"]
    sup.advance(1.0)
    assert sup.take() == ["tree ended"]


def test_a_pool_that_gave_up_comes_back_empty() -> None:
    sup = pool()
    for name in "kl":
        value(sup, m.Verb.START_CHILD, Instance(name), "pool")
    for _ in range(4):
        sup.crash("pool/k")
    assert value(sup, m.Verb.WHICH_CHILDREN, target="pool") == []


def test_the_template_itself_cannot_be_started_or_ended() -> None:
    sup = pool()
    for verb in (m.Verb.TERMINATE_CHILD, m.Verb.RESTART_CHILD, m.Verb.DELETE_CHILD):
        assert isinstance(error(sup, verb, "template", "pool"), TemplateError)
    assert isinstance(error(sup, m.Verb.START_CHILD, child("x"), "pool"), SpecError)


def test_removed_instances_leave_little_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayvisor._core.supervision.state.MOST_RETIRED", 10)
    sup = pool(restart="temporary")
    for number in range(100):
        value(sup, m.Verb.START_CHILD, Instance(str(number)), "pool")
        sup.crash(f"pool/{number}", NORMAL)
    assert len(sup.core._state._retired_epochs) <= 10
    value(sup, m.Verb.START_CHILD, Instance("0"), "pool")
    assert sup.live["pool/0"] > 1  # a number is never used twice for a path, also when it was dropped


# --- updates --------------------------------------------------------------------------------------


def test_an_update_starts_and_ends_nothing_and_rules_from_the_next_event() -> None:
    sup = tree(child("a"), child("b"))
    value(
        sup,
        m.Verb.APPLY_SPEC,
        SupervisorSpec(strategy=Strategy.ONE_FOR_ALL, children=[child("b"), child("a")]),
    )
    assert sup.take() == []
    sup.crash("a")
    assert sup.take() == ["stop b 1", "start b 2", "start a 2"]


def test_an_update_adds_at_rest_and_keeps_what_is_gone_from_the_list_after_the_new_ones() -> None:
    sup = tree(child("a"), child("b"))
    value(sup, m.Verb.APPLY_SPEC, SupervisorSpec(children=[child("new"), child("b")]))
    lines = value(sup, m.Verb.WHICH_CHILDREN)
    assert [(line.id, line.running) for line in lines] == [("a", True), ("b", True), ("new", False)]


def test_an_update_rules_the_next_incarnation_of_a_supervisor_as_well() -> None:
    inner = SupervisorSpec(children=[child("x")], intensity=0)
    sup = tree(ChildSpec(id="s", start=inner))
    value(sup, m.Verb.APPLY_SPEC, SupervisorSpec(children=[child("x"), child("y")], intensity=0), "s")
    sup.crash("s/x")
    assert sup.take() == ["start s/x 2", "start s/y 1"]


def test_an_update_that_is_no_spec_is_refused() -> None:
    sup = tree(child("a"))
    assert isinstance(error(sup, m.Verb.APPLY_SPEC, "one_for_all"), SpecError)
