from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from statecharts import Branch, Chart, ChartError, Choice, Leaf, State, Transition, compile_chart, from_each

DOOR = Chart(
    name="door",
    states=(
        State("OPEN", (Leaf("AJAR"), Leaf("WIDE"))),
        State("SHUT", (Leaf("CLOSED"), Leaf("LOCKED"))),
        State.simple("BROKEN", final=True),
    ),
    initial="CLOSED",
    flags=("BOLT", "OILED"),
    choices=(Choice("LATCH", (Branch("BOLT", "LOCKED"),), otherwise="CLOSED"),),
    transitions=(
        Transition("OPEN", "shut", "LATCH"),
        Transition("OPEN", "bolt", None, sets=("BOLT",)),
        Transition("OPEN", "oil", None, sets=("OILED",)),
        Transition("CLOSED", "push", "AJAR"),
        Transition("AJAR", "push", "WIDE", when=("OILED",)),
        Transition("AJAR", "push", "BROKEN", unless=("OILED",)),
        Transition("LOCKED", "unlock", "CLOSED", clears=("BOLT",)),
    ),
)


def with_transition(*more: Transition) -> Chart:
    return replace(DOOR, transitions=(*DOOR.transitions, *more))


def test_a_right_chart_is_made_and_compiled() -> None:
    table = compile_chart(DOOR)
    assert {here.leaf for here in table.configurations} == {leaf.name for leaf in DOOR.leaves}
    assert table.events == ("shut", "bolt", "oil", "push", "unlock")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, ("name", "empty")),
        ({"initial": "GONE"}, ("initial", "'GONE'", "AJAR")),
        ({"initial": "OPEN"}, ("initial", "'OPEN'")),
        ({"states": (*DOOR.states, State("WALL", ()))}, ("'WALL'", "no leaf")),
        ({"states": (*DOOR.states, State("WALL", (Leaf("AJAR"),)))}, ("'AJAR'", "2 times")),
        ({"states": (*DOOR.states, State("WALL", (Leaf(""),)))}, ("leaf", "empty name")),
        ({"states": (*DOOR.states, State("OPEN", (Leaf("X"),)))}, ("'OPEN'", "2 times")),
        ({"flags": ("BOLT", "OILED", "BOLT")}, ("flag 'BOLT'", "2 times")),
        ({"choices": (*DOOR.choices, Choice("OPEN", (), "AJAR"))}, ("'OPEN'", "2 times")),
        (
            {"choices": (Choice("LATCH", (Branch("BOLD", "AJAR"),), "AJAR"),)},
            ("'LATCH'", "flag 'BOLD'", "BOLT"),
        ),
        ({"choices": (Choice("LATCH", (Branch("BOLT", "A"),), "AJAR"),)}, ("'LATCH'", "leaf 'A'")),
        ({"choices": (Choice("LATCH", (), "B"),)}, ("'LATCH'", "leaf 'B'")),
        (
            {"choices": (Choice("LATCH", (Branch("BOLT", "LOCKED"), Branch("BOLT", "AJAR")), "CLOSED"),)},
            ("'LATCH'", "'BOLT' 2 times"),
        ),
    ],
)
def test_a_wrong_part_is_named_with_its_remedy(change: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ChartError) as caught:
        replace(DOOR, **change)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("transition", "words"),
    [
        (Transition("GONE", "push", "AJAR"), ("source 'GONE'",)),
        (Transition("LATCH", "push", "AJAR"), ("source 'LATCH'",)),
        (Transition("LOCKED", "push", "GONE"), ("leaf 'GONE'", "LATCH")),
        (Transition("LOCKED", "push", "OPEN"), ("leaf 'OPEN'",)),
        (Transition("LOCKED", "", "AJAR"), ("no event",)),
        (Transition("LOCKED", "kick", "AJAR", when=("A",)), ("flag 'A'", "BOLT, OILED")),
        (Transition("LOCKED", "kick", "AJAR", unless=("A",)), ("flag 'A'",)),
        (Transition("LOCKED", "kick", "AJAR", sets=("A",)), ("flag 'A'",)),
        (Transition("LOCKED", "kick", "AJAR", clears=("A",)), ("flag 'A'",)),
        (
            Transition("LOCKED", "kick", "AJAR", when=("BOLT",), unless=("BOLT",)),
            ("'BOLT'", "when", "unless"),
        ),
        (
            Transition("LOCKED", "kick", "AJAR", sets=("BOLT",), clears=("BOLT",)),
            ("'BOLT'", "sets", "clears"),
        ),
        (Transition("CLOSED", "push", "WIDE"), ("'CLOSED'", "'push'", "at the same time", "AJAR", "WIDE")),
        (Transition("AJAR", "push", "CLOSED", when=("BOLT",)), ("'AJAR'", "'push'", "at the same time")),
    ],
)
def test_a_wrong_transition_is_named_with_its_remedy(transition: Transition, words: tuple[str, ...]) -> None:
    with pytest.raises(ChartError) as caught:
        with_transition(transition)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "'door'" in str(caught.value)


def test_an_unreachable_leaf_is_refused_by_compiling() -> None:
    chart = replace(DOOR, states=(*DOOR.states, State("ROOF", (Leaf("HATCH", final=True),))))
    with pytest.raises(ChartError, match=r"'HATCH'.*cannot be reached"):
        compile_chart(chart)


def test_a_leaf_that_only_an_impossible_guard_leads_to_is_unreachable() -> None:
    chart = with_transition(Transition("CLOSED", "kick", "BROKEN", when=("OILED",), unless=("BOLT",)))
    compile_chart(chart)
    without_oil = tuple(one for one in chart.transitions if one.event != "oil")
    with pytest.raises(ChartError, match=r"'WIDE'.*cannot be reached"):
        compile_chart(replace(chart, transitions=without_oil))


def test_a_transition_that_is_never_taken_is_refused_by_compiling() -> None:
    hidden = with_transition(*from_each(("CLOSED", "LOCKED", "SHUT"), "kick", "BROKEN"))
    with pytest.raises(ChartError, match=r"'SHUT', event 'kick'.*never taken"):
        compile_chart(hidden)


def test_a_leaf_without_a_way_out_is_refused_unless_it_is_final() -> None:
    stuck = replace(DOOR, states=(*DOOR.states[:2], State.simple("BROKEN")))
    with pytest.raises(ChartError, match=r"'BROKEN'.*cannot be left"):
        compile_chart(stuck)


def test_a_leaf_that_some_flags_lock_for_ever_is_refused() -> None:
    chart = Chart(
        "trap",
        (State("S", (Leaf("A"), Leaf("B"))),),
        "A",
        (
            Transition("A", "arm", None, sets=("ARMED",)),
            Transition("A", "go", "B", unless=("ARMED",)),
            Transition("B", "back", "A"),
        ),
        flags=("ARMED",),
    )
    with pytest.raises(ChartError, match=r"'A'.*cannot be left \(flags: ARMED\)"):
        compile_chart(chart)
    way_out = Transition("A", "disarm", None, when=("ARMED",), clears=("ARMED",))
    compile_chart(replace(chart, transitions=(*chart.transitions, way_out)))


def test_errors_carry_their_parts() -> None:
    error = ChartError("door", "leaf 'A'", "is gone", "put it back")
    assert (error.chart, error.where, error.problem, error.remedy) == (
        "door",
        "leaf 'A'",
        "is gone",
        "put it back",
    )
    assert str(error) == "chart 'door': leaf 'A': is gone; put it back"


def test_looking_up_an_unknown_leaf_names_the_known_ones() -> None:
    with pytest.raises(ChartError, match="AJAR, WIDE, CLOSED, LOCKED, BROKEN"):
        DOOR.leaf("GONE")
    assert DOOR.state_of("WIDE").name == "OPEN"
    assert DOOR.leaves_of("OPEN") == ("AJAR", "WIDE")
    assert DOOR.leaves_of("BROKEN") == ("BROKEN",)
