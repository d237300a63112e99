"""Markdown tables of the states with their meaning, the choices, and the transitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from statecharts.chart import Transition
from statecharts.drawing import Drawing, change_text, guard_text

__all__ = ["render_table", "table_lines"]


def render_table(drawing: Drawing) -> str:
    """Render a chart as Markdown tables."""
    return "\n".join(_lines(drawing)) + "\n"


def _lines(drawing: Drawing) -> Iterator[str]:
    chart = drawing.chart
    yield f"# {_escape(chart.name)}"
    if chart.doc:
        yield from ("", _escape(chart.doc))
    yield from ("", f"Begins in {_escape(chart.initial)}.")
    if drawing.path:
        yield from ("", f"Came through {_escape(', '.join(drawing.path))}.")
    if drawing.at is not None:
        yield from ("", f"Now in {_escape(drawing.at)}.")
    if chart.flags:
        yield from ("", f"Flags: {_escape(', '.join(chart.flags))}.")
    yield ""
    yield from table_lines(
        ("State", "Leaf", "Final", "Meaning"),
        (
            (state.name, leaf.name, "yes" if leaf.final else "", leaf.doc)
            for state in chart.states
            for leaf in state.leaves
        ),
    )
    for choice in chart.choices:
        yield from ("", f"## Choice {_escape(choice.name)}", "")
        if choice.doc:
            yield from (_escape(choice.doc), "")
        branches = [(branch.flag, branch.target) for branch in choice.branches]
        yield from table_lines(
            ("First flag set", "Leads to"), [*branches, ("none of them", choice.otherwise)]
        )
    yield from ("", "## Transitions", "")
    yield from table_lines(
        ("From", "Event", "When", "To", "Flags", "Why", *(("Taken",) if drawing.passes else ())),
        (
            (*_row(transition), *((drawing.taken(transition),) if drawing.passes else ()))
            for transition in chart.transitions
        ),
    )


def _row(transition: Transition) -> tuple[str, ...]:
    return (
        transition.source,
        transition.event,
        guard_text(transition),
        "(stays)" if transition.target is None else transition.target,
        change_text(transition),
        transition.doc,
    )


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    # Padded, so that it is readable in a terminal as well.
    cells = [[_escape(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(padded)} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def _escape(text: str) -> str:
    """Escape a text for Markdown; collapse whitespace."""
    # An underscore inside a word needs no escape, so names stay readable.
    escaped = re.sub(r"[\\`*|#~\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
