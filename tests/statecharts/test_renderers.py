from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statecharts import (
    Chart,
    ChartError,
    Leaf,
    State,
    Transition,
    compile_chart,
    formats,
    register_renderer,
    render,
    tree_formats,
)
from statecharts.lifecycles import CHARTS
from tests.statecharts.odd import ODD

GOLDEN = Path(__file__).parent / "golden"


def golden() -> Iterator[tuple[str, Chart, str]]:
    for name, chart in {**CHARTS, "odd": ODD}.items():
        for form in ("mermaid", "dot", "svg", "scxml", "table", "json"):
            yield f"{name}.{form}", chart, form


@pytest.mark.parametrize(("file", "chart", "form"), list(golden()), ids=lambda part: str(part)[:20])
def test_a_rendering_is_what_was_looked_at(file: str, chart: Chart, form: str) -> None:
    # To accept a change: rayvisor chart NAME --format FORM > tests/statecharts/golden/NAME.FORM
    assert render(chart, form) == (GOLDEN / file).read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    trees = {f"tree.{form}" for form in tree_formats()}
    assert {path.name for path in GOLDEN.iterdir()} == {file for file, _, _ in golden()} | trees


def test_the_odd_chart_holds() -> None:
    compile_chart(ODD)


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_mermaid_says_every_transition(chart: Chart) -> None:
    text = render(chart, "mermaid")
    arrows = [line for line in text.splitlines() if "-->" in line and "[*]" not in line]
    branches = sum(len(choice.branches) + 1 for choice in chart.choices)
    assert len(arrows) == branches + sum(one.target is not None for one in chart.transitions)


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_the_table_says_every_leaf_and_transition(chart: Chart) -> None:
    text = render(chart, "table")
    for leaf in chart.leaves:
        assert re.search(rf"^\| \w+ +\| {leaf.name} ", text, re.MULTILINE)
    for one in chart.transitions:
        assert re.search(rf"^\| {one.source} +\| {one.event} ", text, re.MULTILINE)


_MERMAID_LINE = re.compile(
    r"""stateDiagram-v2
    | \s*state\ "[^"\n]*"\ as\ \w+(\ \{)?     # a state or a leaf
    | \s*\}
    | \s*state\ \w+\ <<choice>>
    | \s*(\[\*\]|\w+)\ -->\ (\[\*\]|\w+)(\ :\ [^:;%{}<>"]*)?
    | \s*note\ right\ of\ \w+
    | \s*end\ note
    | \s+[^:;%{}<>"]+                          # inside a note
    """,
    re.VERBOSE,
)
names = st.text(min_size=1, max_size=8).filter(lambda text: bool(text.strip()))


@given(st.lists(names, min_size=3, max_size=3, unique=True), names, names)
def test_no_name_breaks_out_of_its_place(places: list[str], event: str, flag: str) -> None:
    first, second, around = places
    chart = Chart(
        "c",
        (State(around, (Leaf(first), Leaf(second))),),
        first,
        (
            Transition(first, event, second, when=(flag,)),
            Transition(first, event, None, unless=(flag,), sets=(flag,), doc=event),
            Transition(second, event, first, doc=flag),
        ),
        flags=(flag,),
    )
    lines = render(chart, "mermaid").split("\n")
    assert len(lines) == 1 + 7 + 1 + 2 + 1
    for line in lines[:-1]:
        entities_out = re.sub(r"#\d+;", "", line)
        assert _MERMAID_LINE.fullmatch(entities_out), line
        assert "#" not in entities_out
    rows = [line for line in render(chart, "table").split("\n") if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows]
    assert columns == [5] * 4 + [7] * 5


def test_identifiers_stay_apart_when_only_special_characters_differ() -> None:
    chart = Chart(
        "c",
        (State("S", (Leaf("a-b"), Leaf("a+b"), Leaf("a b"))),),
        "a-b",
        (Transition("a-b", "x", "a+b"), Transition("a+b", "x", "a b"), Transition("a b", "x", "a-b")),
    )
    text = render(chart, "mermaid")
    assert "S_a_b --> S_a_b2 : x" in text
    assert "S_a_b2 --> S_a_b3 : x" in text
    assert "S_a_b3 --> S_a_b : x" in text


def test_a_note_says_what_the_leaf_does_not_say_itself() -> None:
    chart = Chart(
        "c",
        (State("S", (Leaf("A"), Leaf("B"), Leaf("C"))),),
        "A",
        (
            Transition("S", "mark", None, sets=("F",)),
            Transition("S", "next", "B"),
            Transition("B", "mark", "C"),
            Transition("C", "mark", None, when=("G",), sets=("G",)),
            Transition("C", "grow", None, sets=("G",)),
            Transition("B", "next", "A"),
        ),
        flags=("F", "G"),
    )
    text = render(chart, "mermaid")
    assert re.findall(r"note right of (\w+)", text) == ["S_A", "S_C"]
    assert re.findall(r"note right of S_C\n((?:.*\n)*?) *end note", text) == [
        "            mark / set F\n            mark [G] / set G\n            grow / set G\n"
    ]


@pytest.mark.usefixtures("own_registry")
def test_a_new_format_is_offered_and_used() -> None:
    register_renderer("name", lambda drawing: f"{drawing.chart.name}\n")
    assert formats() == ("mermaid", "dot", "svg", "scxml", "table", "json", "name")
    assert render(ODD, "name") == "o;dd|chart\n"


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("name", ["", "table"])
def test_a_format_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"name={name!r}"):
        register_renderer(name, lambda drawing: drawing.chart.name)
    assert render(ODD, "table").startswith("# ")


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ChartError, match=r"'pdf'.*use one of mermaid, dot, svg, scxml, table, json"):
        render(ODD, "pdf")
