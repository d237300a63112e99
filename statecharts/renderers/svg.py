"""SVG without any tool: a chart as two columns of boxes with wires between them.

Text is text, colours follow the reader's preference for light or dark, and every arrow also names its target.
``_layout`` computes the positions.
"""

from __future__ import annotations

from collections.abc import Iterator

from statecharts.drawing import Drawing
from statecharts.renderers._layout import Box, Lane, Layout, lay_out
from statecharts.renderers._sheet import LINE, number, sheet, text_line
from statecharts.renderers._text import xml

__all__ = ["render_svg"]

_PAD = 12
_BASELINE = 4
"""Pixels from the middle of a line of text down to its baseline."""


def render_svg(drawing: Drawing) -> str:
    """Render a chart as an SVG picture."""
    layout = lay_out(drawing)
    size = (layout.width, layout.height)
    parts = sheet("Statechart", drawing.chart.name, drawing.description(), size, _body(drawing, layout))
    return "\n".join(parts) + "\n"


def _body(drawing: Drawing, layout: Layout) -> Iterator[str]:
    for index, line in enumerate(layout.head):
        yield text_line(_PAD, (index + 1) * LINE + _BASELINE, line.words, style=line.style)
    for box in layout.left:
        yield from _box(box, right=False)
    for box in layout.right:
        yield from _box(box, right=True)
    for lane in layout.lanes:
        yield from _lane(lane)
    for right, column in ((False, layout.left), (True, layout.right)):
        for box in (each for one in column for each in one.all()):
            if box.name == drawing.chart.initial and box.kind == "leaf":
                yield from _begin(box, layout, right=right)


def _box(box: Box, *, right: bool) -> Iterator[str]:
    look = {"state": "frame", "leaf": "card", "choice": "card choice"}[box.kind]
    lit = ' class="lit"' if box.lit else ""
    yield f'<g{lit} data-{box.kind}="{xml(box.name)}">'
    if box.doc:
        yield f"<title>{xml(f'{box.name}: {box.doc}')}</title>"
    yield _rectangle(box, f"{look} {box.lit}".strip(), 0)
    if box.final:
        yield _rectangle(box, "inner", 3)
    for line in box.lines:
        way_out = line.target is not None or line.doc or (line.style == "" and line.words != [("", "")])
        at_end = bool(way_out) and not right
        x = box.x + box.width - _PAD if at_end else box.x + _PAD
        anchor = "end" if at_end else "start"
        text = text_line(x, line.y + _BASELINE, line.words, anchor=anchor, style=line.style)
        yield f"<g><title>{xml(line.doc)}</title>{text}</g>" if line.doc else text
    yield "</g>"
    for inner in box.inside:
        yield from _box(inner, right=right)


def _rectangle(box: Box, look: str, inset: float) -> str:
    x, y = number(box.x + inset), number(box.y + inset)
    width, height = number(box.width - 2 * inset), number(box.height - 2 * inset)
    return f'<rect class="{look}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{8 - inset}"/>'


def _lane(lane: Lane) -> Iterator[str]:
    """Draw all wires to a target: one from each line that leads there, joined on the way to its name."""
    x, (end, entry) = number(lane.x), lane.entry
    top, bottom = lane.span
    tip = end + (-1 if lane.right else 1)
    base = tip + (-7 if lane.right else 7)
    path = [f"M{number(start)} {number(y)}H{x}" for start, y in lane.starts]
    path += [f"M{x} {number(top)}V{number(bottom)}"] if top != bottom else []
    path += [f"M{x} {number(entry)}H{number(base)}"]
    yield f'<path class="wire c{lane.color}" d="{"".join(path)}"/>'
    yield (
        f'<path class="t{lane.color}" d="M{number(tip)} {number(entry)}L{number(base)} {number(entry - 4)}'
        f'V{number(entry + 4)}Z"/>'
    )
    for _, y in lane.starts:
        if y not in {top, bottom}:
            yield f'<circle class="t{lane.color}" cx="{x}" cy="{number(y)}" r="2.5"/>'


def _begin(box: Box, layout: Layout, *, right: bool) -> Iterator[str]:
    """Draw the dot at the edge of the picture, with an arrow to the initial leaf."""
    y = box.lines[0].y
    inner, outer = (
        (box.x + box.width, layout.right[0].x + layout.right[0].width + 24) if right else (box.x, 16.0)
    )
    base = inner + (8 if right else -8)
    yield f'<circle class="dot" cx="{number(outer)}" cy="{number(y)}" r="5"/>'
    yield f'<path class="plain" d="M{number(outer)} {number(y)}H{number(base)}"/>'
    yield (
        f'<path class="dot" d="M{number(inner + (1 if right else -1))} {number(y)}'
        f'L{number(base)} {number(y - 4)}V{number(y + 4)}Z"/>'
    )
