"""The SCXML documents have the charts' semantics: a small interpreter takes the same steps as the table."""

from __future__ import annotations

import re
from collections import deque
from xml.etree import ElementTree as ET

import pytest

from statecharts import Chart, Leaf, State, Transition, compile_chart, render
from statecharts.lifecycles import CHARTS
from statecharts.renderers.scxml import NAMESPACE
from tests.statecharts.odd import ODD, parsed

SCXML = "{http://www.w3.org/2005/07/scxml}"
OWN = f"{{{NAMESPACE}}}"
Place = tuple[str, frozenset[str]]

ALLOWED = {
    "scxml": {"version", "datamodel", "name", "initial"},
    "state": {"id"},
    "final": {"id"},
    "datamodel": set(),
    "data": {"id", "expr"},
    "transition": {"event", "cond", "target"},
    "assign": {"location", "expr"},
}
"""The elements and attributes of the W3C's schema that are used here."""
INSIDE = {
    "scxml": {"datamodel", "state", "final"},
    "state": {"transition", "state", "final"},
    "datamodel": {"data"},
    "transition": {"assign"},
}


class Reader:
    """An SCXML interpreter for atomic states in one region, written after the W3C's algorithm."""

    def __init__(self, text: str) -> None:
        self.root = parsed(text)
        self.above = {below: above for above in self.root.iter() for below in above}
        self.by_id = {element.get("id"): element for element in self.root.iter() if element.get("id")}
        self.flags = {self.own_name(data): data.get("id") for data in self.root.iter(f"{SCXML}data")}

    @staticmethod
    def own_name(element: ET.Element) -> str:
        identifier = element.get("id") or ""
        if element.tag == f"{SCXML}data":
            identifier = identifier.removeprefix("flag_")
        return element.get(f"{OWN}name") or identifier

    def events(self) -> dict[str, str]:
        return {
            one.get(f"{OWN}name") or event: event
            for one in self.root.iter(f"{SCXML}transition")
            if (event := one.get("event"))
        }

    def step(self, at: str, flags: frozenset[str], event: str | None) -> Place | None:
        element: ET.Element | None = self.by_id[at]
        while element is not None:
            for one in element.findall(f"{SCXML}transition"):
                if one.get("event") == event and self.holds(one.get("cond"), flags):
                    changed = set(flags)
                    for assign in one.findall(f"{SCXML}assign"):
                        place = assign.get("location") or ""
                        changed.discard(place)
                        if assign.get("expr") == "true":
                            changed.add(place)
                    return self.settle(one.get("target") or at, frozenset(changed), event)
            element = self.above.get(element)
        return None

    def settle(self, at: str, flags: frozenset[str], event: str | None) -> Place:
        """Take eventless transitions until none is enabled."""
        if event is None:
            return at, flags
        while (further := self.step(at, flags, None)) is not None:
            at, flags = further
        return at, flags

    @staticmethod
    def holds(condition: str | None, flags: frozenset[str]) -> bool:
        parts = condition.split(" && ") if condition else []
        return all((part.removeprefix("!") in flags) != part.startswith("!") for part in parts)


def assert_same_steps(chart: Chart) -> int:
    reader, table = Reader(render(chart, "scxml")), compile_chart(chart)
    events, initial = reader.events(), reader.root.get("initial") or ""
    assert reader.own_name(reader.by_id[initial]) == chart.initial
    waiting = deque([(table.initial, initial, frozenset[str]())])
    seen = {table.initial}
    while waiting:
        here, at, flags = waiting.popleft()
        for event in table.events:
            there, found = table.step(here, event), reader.step(at, flags, events[event])
            assert (there is None) == (found is None), (here, event)
            if there is None or found is None:
                continue
            assert reader.own_name(reader.by_id[found[0]]) == " ".join(there.leaf.split())
            assert found[1] == {reader.flags[flag] for flag in there.flags}, (here, event)
            if there not in seen:
                seen.add(there)
                waiting.append((there, *found))
    assert seen == set(table.configurations)
    return len(seen)


@pytest.mark.parametrize("chart", [*CHARTS.values(), ODD], ids=lambda chart: chart.name)
def test_an_scxml_reader_takes_the_same_steps_as_the_table(chart: Chart) -> None:
    assert assert_same_steps(chart) >= len(chart.leaves)


def test_the_reader_would_notice_a_missing_step() -> None:
    text = render(CHARTS["task"], "scxml")
    reader = Reader(text.replace('event="retry"', 'event="rerun"'))
    assert reader.step("RETRYING", frozenset(), "retry") is None
    assert Reader(text).step("RETRYING", frozenset(), "retry") == ("PENDING", frozenset())


@pytest.mark.parametrize("chart", [*CHARTS.values(), ODD], ids=lambda chart: chart.name)
def test_the_document_keeps_to_the_schema(chart: Chart) -> None:
    root = Reader(render(chart, "scxml", at=chart.initial)).root
    assert (root.tag, root.get("version")) == (f"{SCXML}scxml", "1.0")
    identifiers = [element.get("id") or "" for element in root.iter() if "id" in element.attrib]
    assert len(identifiers) == len(set(identifiers))
    for element in root.iter():
        tag = element.tag.removeprefix(SCXML)
        plain = {key for key in element.attrib if not key.startswith(OWN)}
        assert plain <= ALLOWED[tag]
        assert {child.tag.removeprefix(SCXML) for child in element} <= INSIDE.get(tag, set())
        assert element.get("target") is None or element.get("target") in identifiers
        assert re.fullmatch(r"[A-Za-z0-9_-]+", element.get("event", "x"))
        assert re.fullmatch(r"[A-Za-z_]\w*", element.get("id", "x"), re.ASCII)


def test_only_what_cannot_be_left_is_final_in_scxml() -> None:
    task = Reader(render(CHARTS["task"], "scxml")).root
    finals = [element.get("id") for element in task.iter(f"{SCXML}final")]
    assert finals == ["SUCCEEDED", "FAILED", "CANCELLED"]
    engine = Reader(render(CHARTS["engine"], "scxml")).root
    assert not list(engine.iter(f"{SCXML}final"))
    rests = [element.get("id") for element in engine.iter() if element.get(f"{OWN}final")]
    assert rests == ["COMPLETED", "STOPPED", "FAILED", "EXHAUSTED"]


def test_the_lit_state_is_marked() -> None:
    text = render(CHARTS["engine"], "scxml", at="PAUSED.STALE", path=["SERVING"])
    lit = {
        element.get("id"): how
        for element in Reader(text).root.iter()
        for how in ("live", "passed")
        if element.get(OWN + how)
    }
    assert lit == {"SERVING": "passed", "STALE": "live"}


def test_names_that_no_identifier_can_hold_stay_apart() -> None:
    chart = Chart(
        "1 2",
        (State("S", (Leaf("1"), Leaf("ü"), Leaf("ö\x01"))),),
        "1",
        (
            Transition("1", "é", "ü", sets=("+",)),
            Transition("1", "è", "ö\x01", sets=("-",)),
            Transition("S", "back", "1", clears=("+", "-")),
        ),
        flags=("+", "-"),
    )
    root = Reader(render(chart, "scxml")).root
    assert [element.get("id") for element in root.iter(f"{SCXML}state")] == ["S", "_1", "__", "___"]
    assert [element.get("id") for element in root.iter(f"{SCXML}data")] == ["flag__", "flag__2"]
    assert {one.get("event") for one in root.iter(f"{SCXML}transition")} == {"_", "_2", "back"}


def test_a_state_and_a_flag_have_different_identifiers_whatever_their_names() -> None:
    chart = Chart(
        "c",
        (State("S", (Leaf("flag_X"), Leaf("flag_X2"), Leaf("flag__"))),),
        "flag_X",
        (
            Transition("flag_X", "go", "flag_X2", sets=("X", "X2", "é")),
            Transition("flag_X", "stop", "flag__"),
            Transition("S", "back", "flag_X", clears=("X", "X2", "é")),
        ),
        flags=("X", "X2", "é"),
    )
    root = Reader(render(chart, "scxml")).root
    identifiers = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers)) == 7
    names = [Reader.own_name(element) for element in root.iter(f"{SCXML}data")]
    assert names == ["X", "X2", "é"]
    assert_same_steps(chart)
