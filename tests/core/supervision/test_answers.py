"""Calls whose child is stopped, restarted or removed by something else: each is answered exactly once."""

from __future__ import annotations

from typing import Any

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor.errors import AlreadyStartedError, ChildStartError
from rayvisor.faults import NORMAL
from rayvisor.specs import (
    AutoShutdown,
    Backoff,
    ChildSpec,
    Instance,
    Jitter,
    Restart,
    Strategy,
    SupervisorSpec,
)
from rayvisor.strategies import Failure, Siblings, Step, stop
from rayvisor.testing import HANGS, NOTHING, UP, Outcome, VirtualTree

LATER = Outcome("up", after=5.0)
GROUPS = [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE]


def child(name: str, **more: Any) -> ChildSpec:
    return ChildSpec(id=name, start=NOTHING, start_timeout=1.0, **more)


def tree(*children: ChildSpec, outcomes: Any = None, **flags: Any) -> VirtualTree:
    flags = {"intensity": 5, "period": 1000.0} | flags
    made = VirtualTree(SupervisorSpec(children=children, **flags), outcomes=outcomes)
    made.take()
    return made


@pytest.mark.parametrize("strategy", GROUPS)
def test_starting_a_temporary_child_is_refused_when_a_sibling_dies_meanwhile(strategy: Strategy) -> None:
    sup = tree(child("a"), strategy=strategy, outcomes={"t": [HANGS]})
    assert sup.call(m.Verb.START_CHILD, "", child("t", restart=Restart.TEMPORARY)) is None
    sup.crash("a")
    assert sup.take() == ["start t 1", "stop t 1", "start a 2"]
    (reply,) = sup.of(m.Reply)
    assert isinstance(reply.error, ChildStartError)
    assert sup.core.status("t") is None  # its spec is gone: the id is free
    assert sup.call(m.Verb.START_CHILD, "", child("t", restart=Restart.TEMPORARY)) == m.Reply(2, "t")


@pytest.mark.parametrize("strategy", GROUPS)
def test_starting_a_permanent_child_is_answered_when_the_group_is_up_again(strategy: Strategy) -> None:
    sup = tree(child("a"), strategy=strategy, outcomes={"b": [HANGS, LATER]})
    assert sup.call(m.Verb.START_CHILD, "", child("b")) is None
    sup.crash("a")
    assert sup.of(m.Reply) == []
    sup.advance(5.0)
    assert sup.of(m.Reply) == [m.Reply(1, "b")]


class StopB:
    """Stops ``b`` when another one fails, and starts nothing."""

    def plan(self, failure: Failure, siblings: Siblings) -> list[Step]:
        return [stop("b")] if failure.child != "b" and "b" in siblings else []


def test_a_start_that_a_plan_stops_for_good_is_refused() -> None:
    sup = tree(child("a"), strategy=StopB(), outcomes={"b": [HANGS]})
    assert sup.call(m.Verb.START_CHILD, "", child("b")) is None
    sup.crash("a")
    (reply,) = sup.of(m.Reply)
    assert isinstance(reply.error, ChildStartError)
    assert sup.leaf("b") == "STOPPED"


def test_a_start_that_a_plan_called_off_and_one_asked_for_meanwhile_are_answered_once_each() -> None:
    slow = Backoff(initial=9.0, maximum=9.0, jitter=Jitter.NONE, first_delay_zero=False)
    sup = tree(child("a", backoff=slow), strategy=Strategy.ONE_FOR_ALL, outcomes={"b": [HANGS]})
    assert sup.call(m.Verb.START_CHILD, "", child("b")) is None
    sup.crash("a")  # everything waits down
    assert sup.call(m.Verb.RESTART_CHILD, "", "b") == m.Reply(2, "b")
    assert isinstance(sup.replies[1].error, ChildStartError)


def pool(restart: Restart) -> VirtualTree:
    template = child("template", restart=restart)
    inner = SupervisorSpec(strategy=Strategy.SIMPLE_ONE_FOR_ONE, children=[template], intensity=3)
    sup = tree(ChildSpec(id="pool", start=inner))
    sup.call(m.Verb.START_CHILD, "pool", Instance("k"))
    return sup


def test_starting_an_instance_that_is_being_restarted_is_answered_as_already_started() -> None:
    sup = pool(Restart.PERMANENT)
    sup.crash("pool/k", gone=False)
    assert sup.call(m.Verb.START_CHILD, "pool", Instance("k")) is None
    sup.prove("pool/k")
    assert sup.live["pool/k"] == 2
    assert isinstance(sup.replies[2].error, AlreadyStartedError)


@pytest.mark.parametrize("restart", [Restart.TEMPORARY, Restart.TRANSIENT])
def test_starting_an_instance_that_is_ending_for_good_starts_it_anew(restart: Restart) -> None:
    sup = pool(restart)
    sup.crash("pool/k", NORMAL, gone=False)
    assert sup.call(m.Verb.START_CHILD, "pool", Instance("k")) is None
    sup.prove("pool/k")
    assert sup.replies[2] == m.Reply(2, "pool/k")
    assert sup.live["pool/k"] == 2


def ends_while_it_starts() -> ChildSpec:
    """Make a supervisor whose significant child ends while another one has still to come up."""
    inner = SupervisorSpec(
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
        children=[child("x", restart=Restart.TRANSIENT, significant=True), child("y")],
    )
    return ChildSpec(id="s", start=inner, restart=Restart.TRANSIENT)


@pytest.mark.parametrize("strategy", GROUPS)
def test_a_supervisor_that_ends_while_it_starts_does_not_hold_up_the_start_above(strategy: Strategy) -> None:
    sup = tree(
        child("a"),
        ends_while_it_starts(),
        child("b"),
        strategy=strategy,
        outcomes={"s/y": [HANGS]},
    )
    sup.crash("s/x", NORMAL)
    assert sup.take() == ["stop s/y 1", "start b 1", "tree up"]
    assert sup.leaf("s") == "COMPLETED"


@pytest.mark.parametrize("strategy", GROUPS)
def test_a_supervisor_that_ends_while_it_starts_does_not_hold_up_a_group_restart(strategy: Strategy) -> None:
    sup = tree(
        child("a"),
        ends_while_it_starts(),
        child("b"),
        strategy=strategy,
        outcomes={"s/y": [UP, HANGS]},
    )
    sup.crash("a")
    sup.take()
    sup.crash("s/x", NORMAL)
    assert sup.take() == ["stop s/y 2", "start b 2"]
    assert sup.leaf("s") == "COMPLETED"
