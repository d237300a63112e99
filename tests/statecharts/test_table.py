from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from itertools import combinations
from threading import Barrier, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statecharts import (
    Branch,
    Chart,
    ChartError,
    Choice,
    Configuration,
    Leaf,
    State,
    Transition,
    compile_chart,
)
from statecharts.lifecycles import ENGINE

FLAGS = ("F", "G")
SUBSETS = [frozenset(some) for size in range(3) for some in combinations(FLAGS, size)]
LEAVES = ("A1", "A2", "B1", "B2")
STATES = (
    State("A", (Leaf("A1", final=True), Leaf("A2", final=True))),
    State("B", (Leaf("B1", final=True), Leaf("B2", final=True))),
)
CHOICES = (Choice("C", (Branch("G", "B2"), Branch("F", "A2")), otherwise="A1"),)
Point = tuple[str, frozenset[str]]


def read(chart: Chart, here: Point, event: str) -> tuple[Point, Transition] | None:
    """A reference interpreter of charts, which every table has to agree with."""
    leaf, flags = here
    around = next(state.name for state in chart.states if leaf in {one.name for one in state.leaves})
    for source in (leaf, around):
        for one in chart.transitions:
            guard = set(one.when) <= flags and not set(one.unless) & flags
            if (one.source, one.event) == (source, event) and guard:
                after = (flags - set(one.clears)) | set(one.sets)
                target = leaf if one.target is None else one.target
                if target == "C":
                    target = "B2" if "G" in after else "A2" if "F" in after else "A1"
                return (target, after), one
    return None


def walk(chart: Chart) -> tuple[set[Point], set[Transition]]:
    seen: set[Point] = {(chart.initial, frozenset())}
    taken, waiting = set(), list(seen)
    while waiting:
        here = waiting.pop()
        for event in chart.events:
            if found := read(chart, here, event):
                there, transition = found
                taken.add(transition)
                if there not in seen:
                    seen.add(there)
                    waiting.append(there)
    return seen, taken


def both_enabled(one: Transition, other: Transition) -> bool:
    same = (one.source, one.event) == (other.source, other.event)
    return same and any(one.enabled(flags) and other.enabled(flags) for flags in SUBSETS)


@st.composite
def some_transitions(draw: st.DrawFn) -> Transition:
    def pair() -> tuple[tuple[str, ...], tuple[str, ...]]:
        split = draw(st.lists(st.sampled_from(("first", "second", "none")), min_size=2, max_size=2))
        return (
            tuple(flag for flag, side in zip(FLAGS, split, strict=True) if side == "first"),
            tuple(flag for flag, side in zip(FLAGS, split, strict=True) if side == "second"),
        )

    when, unless = pair()
    sets, clears = pair()
    source = draw(st.sampled_from((*LEAVES, "A", "B")))
    target = draw(st.sampled_from((*LEAVES, "C", None)))
    event = draw(st.sampled_from(("x", "y", "z")))
    return Transition(source, event, target, when, unless, sets, clears)


@st.composite
def charts(draw: st.DrawFn) -> Chart:
    """Valid charts: every leaf is reachable, and no two transitions conflict."""
    chosen = [Transition("A1", f"to {leaf}", leaf) for leaf in LEAVES[1:]]
    for one in draw(st.lists(some_transitions(), max_size=12)):
        if not any(both_enabled(one, other) for other in chosen):
            chosen.append(one)
    chart = Chart("any", STATES, "A1", tuple(chosen), FLAGS, CHOICES)
    _, taken = walk(chart)
    return replace(chart, transitions=tuple(one for one in chosen if one in taken))


@given(charts())
def test_a_table_says_what_the_chart_says(chart: Chart) -> None:
    table = compile_chart(chart)
    seen, _ = walk(chart)
    assert {(here.leaf, here.flags) for here in table.configurations} == seen
    assert len(table.configurations) == len(seen)
    for here in table.configurations:
        assert here.state == chart.state_of(here.leaf).name
        for event in table.events:
            found = read(chart, (here.leaf, here.flags), event)
            there = table.step(here, event)
            assert (there and (there.leaf, there.flags)) == (found and found[0])


@given(some_transitions(), some_transitions())
def test_a_chart_is_refused_exactly_when_two_transitions_can_be_enabled_at_once(
    one: Transition, other: Transition
) -> None:
    if both_enabled(one, other):
        with pytest.raises(ChartError, match="at the same time"):
            Chart("any", STATES, "A1", (one, other), FLAGS, CHOICES)
    else:
        Chart("any", STATES, "A1", (one, other), FLAGS, CHOICES)


def test_compiling_an_equal_chart_gives_the_same_table() -> None:
    again = replace(ENGINE)
    assert again is not ENGINE
    assert compile_chart(again) is compile_chart(ENGINE)


def test_an_event_without_a_meaning_gives_none() -> None:
    table = compile_chart(ENGINE)
    assert table.step(table.initial, "retry") is None
    assert table.step(table.initial, "no such event") is None


def test_a_configuration_is_one_object_however_it_is_made() -> None:
    one = Configuration("PAUSED", "FAULTED", ["STANDBY", "FAULTED"])
    assert Configuration("PAUSED", "FAULTED", ("FAULTED", "STANDBY")) is one
    assert pickle.loads(pickle.dumps(one)) is one
    assert copy.copy(one) is one
    assert copy.deepcopy({"here": one})["here"] is one
    assert one in compile_chart(ENGINE).configurations


def test_configurations_of_different_values_differ() -> None:
    configurations = compile_chart(ENGINE).configurations
    assert len({str(here) for here in configurations}) == len(configurations)


def test_a_configuration_reads_as_state_leaf_and_flags() -> None:
    assert (
        str(Configuration("PAUSED", "FAULTED", ("STANDBY", "FAULTED"))) == "PAUSED.FAULTED {FAULTED, STANDBY}"
    )
    assert str(Configuration("PENDING", "PENDING")) == "PENDING"
    assert repr(Configuration("ALIVE", "SERVING")) == "<Configuration ALIVE.SERVING>"


def test_a_shared_configuration_cannot_be_changed() -> None:
    here = Configuration("ALIVE", "SERVING")
    with pytest.raises(AttributeError, match="shared"):
        here.leaf = "STANDBY"
    with pytest.raises(AttributeError, match="shared"):
        del here.leaf
    with pytest.raises(AttributeError):
        here.more = 1
    assert here.leaf == "SERVING"


def test_threads_that_make_the_same_configuration_at_once_get_one_object() -> None:
    barrier, made = Barrier(8), list[Configuration]()

    def make() -> None:
        barrier.wait()
        made.extend(Configuration("THREADS", f"LEAF{number}") for number in range(200))

    threads = [Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1600
    assert len(set(made)) == 200


def test_a_table_can_be_read_but_not_changed() -> None:
    table = compile_chart(ENGINE)
    assert table.rows[table.initial, "started"].path == "ALIVE.SERVING"
    with pytest.raises(TypeError):
        table.rows[table.initial, "started"] = table.initial  # type: ignore[index]
