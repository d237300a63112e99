"""Warm spares take over, and come back as spares."""

from __future__ import annotations

from typing import Any, NamedTuple

from rayvisor._core.supervision import messages as m
from rayvisor.specs import ChildSpec, SupervisorSpec
from rayvisor.testing import HANGS, UP, VirtualTree, fails


class _Engine(NamedTuple):
    kind: str = "engine"


def tree(outcomes: Any = None, **options: Any) -> VirtualTree:
    children = [ChildSpec(id=each, start=_Engine(), standby=each == "c") for each in "abc"]
    made = VirtualTree(SupervisorSpec(children=children, intensity=5, **options), outcomes=outcomes)
    made.take()
    return made


def leaves(tree: VirtualTree) -> list[str]:
    return [tree.leaf(each) for each in "abc"]


def test_a_spare_takes_over_at_once_and_the_dead_one_comes_back_as_the_spare() -> None:
    t = tree({"b": [UP, HANGS]})
    assert leaves(t) == ["SERVING", "SERVING", "STANDBY"]
    t.crash("b", gone=False)
    assert leaves(t) == ["SERVING", "STOPPING", "SERVING"]
    t.prove("b")
    assert leaves(t) == ["SERVING", "STARTING", "SERVING"]


def test_the_spare_serves_before_the_dead_ones_requests_look_for_another_engine() -> None:
    t = tree()
    t.crash("b", gone=False)
    moves = [(x.child, x.event) for x in t.of(m.Changed) if x.event in {"promote", "fault", "standby"}]
    assert moves == [("c", "promote"), ("b", "fault"), ("b", "standby")]


def test_an_engine_that_comes_back_is_on_standby() -> None:
    t = tree()
    t.crash("b")
    assert leaves(t) == ["SERVING", "STANDBY", "SERVING"]
    t.crash("a")
    assert leaves(t) == ["STANDBY", "SERVING", "SERVING"]


def test_a_spare_that_dies_comes_back_as_a_spare() -> None:
    t = tree()
    t.crash("c")
    assert leaves(t) == ["SERVING", "SERVING", "STANDBY"]


def test_a_spare_that_comes_up_late_steps_in_for_the_engine_that_lacked_it() -> None:
    t = tree({"c": [UP, HANGS], "b": [UP, HANGS]})
    t.crash("c")
    t.crash("b")
    assert leaves(t) == ["SERVING", "STARTING", "STARTING"]
    t.feed(m.Started("c", 2))
    assert leaves(t) == ["SERVING", "STARTING", "SERVING"]
    t.feed(m.Started("b", 2))
    assert leaves(t) == ["SERVING", "STANDBY", "SERVING"]


def test_at_the_first_start_no_spare_steps_in() -> None:
    t = tree({"a": [HANGS]}, max_concurrent_starts=3)
    assert leaves(t) == ["STARTING", "SERVING", "STANDBY"]


def test_a_start_that_fails_is_replaced_as_well() -> None:
    t = tree({"a": [UP, fails(), HANGS], "c": [HANGS]}, max_concurrent_starts=3)
    t.crash("a")
    assert leaves(t) == ["STARTING", "SERVING", "STARTING"]
    t.feed(m.Started("c", 1))
    assert leaves(t) == ["STARTING", "SERVING", "SERVING"]
