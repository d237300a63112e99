"""The layout of a chart in a picture.

There are two columns of boxes with a corridor between them. A box has a line with its name, then its meaning,
then a line for each arrow out of it. From such a line a wire runs straight into the corridor, to the lane of
its target; the lane leads to the line with the target's name. Every line of text has its own row, lines of
the right column are half a row lower than those of the left, and each target has its own lane wherever lanes
would meet. Therefore no two texts and no two wires ever overlap, whatever the chart; wires only cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from statecharts.drawing import Arrow, Drawing
from statecharts.renderers._sheet import COLORS, LETTER, LINE
from statecharts.renderers._text import columns, wrapped

__all__ = ["Box", "Lane", "Layout", "Line", "lay_out"]

LIMIT = 44
"""Columns of text in a box before a line breaks."""
_PAD = 12
_MARGIN = 40
_LANE = 13
_LEAST_ROWS_TO_SPLIT = 12
_LEGEND = "\u25cf initial, \u25ce final, \u21ba only flags change"


@dataclass(slots=True)
class Line:
    """A line of text in a box; a wire begins there if it has a target."""

    words: list[tuple[str, str]]
    style: str = ""
    target: str | None = None
    doc: str = ""
    y: float = 0.0


@dataclass(slots=True)
class Box:
    """A state, a leaf or a choice, with the boxes inside it."""

    name: str
    kind: str
    doc: str = ""
    lines: list[Line] = field(default_factory=list)
    inside: list[Box] = field(default_factory=list)
    lit: str = ""
    final: bool = False
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0

    def all(self) -> Iterator[Box]:
        """Iterate over this box and those inside it."""
        yield self
        for box in self.inside:
            yield from box.all()

    def edge(self, *, right: bool) -> float:
        """Return the x of the edge that faces the corridor; ``right`` if it is in the right column."""
        return self.x if right else self.x + self.width

    @property
    def rows(self) -> int:
        """The number of rows that it takes, including the gap below it."""
        return len(self.lines) + 1 + sum(box.rows for box in self.inside) + bool(self.inside)

    @property
    def columns(self) -> int:
        """The number of columns of its longest line."""
        own = (columns(" ".join(word for word, _ in line.words)) for line in self.lines)
        return max(*own, *(box.columns + 4 for box in self.inside), 16)


@dataclass(slots=True)
class Lane:
    """The wires to one target."""

    target: Box
    right: bool
    """Whether the target is in the right column."""
    color: int
    sources: list[tuple[Box, bool, Line]] = field(default_factory=list)
    """The boxes and lines where its wires begin, and whether these are in the right column."""
    x: float = 0.0

    @property
    def entry(self) -> tuple[float, float]:
        """The point at which the arrow meets the target."""
        return self.target.edge(right=self.right), self.target.lines[0].y

    @property
    def starts(self) -> list[tuple[float, float]]:
        """The points at which its wires begin."""
        return [(box.edge(right=right), line.y) for box, right, line in self.sources]

    @property
    def span(self) -> tuple[float, float]:
        """Its top and its bottom."""
        ys = [line.y for *_, line in self.sources] + [self.target.lines[0].y]
        return min(ys), max(ys)


@dataclass(slots=True)
class Layout:
    """A chart in pixels."""

    left: list[Box]
    right: list[Box]
    lanes: list[Lane]
    head: list[Line]
    width: float
    height: float


def lay_out(drawing: Drawing) -> Layout:
    """Compute the positions of all boxes, lines and lanes."""
    left, right = _columns(drawing)
    left_width, right_width = _width(left), _width(right)
    head = list(_head(drawing, max(int((left_width + right_width + 120) / LETTER), 40)))
    top = (len(head) + 2.4) * LINE
    _stack(left, _MARGIN, top, left_width)
    _stack(right, 0, top + LINE / 2, right_width)
    lanes = _lanes(drawing, left, right)
    count = _give_lanes(lanes)
    corridor = _MARGIN + left_width
    for lane in lanes:
        lane.x = corridor + 22 + lane.x * _LANE
    shift = corridor + 44 + (count - 1) * _LANE if right else 0
    for box in (each for one in right for each in one.all()):
        box.x += shift
    width = shift + right_width + _MARGIN if right else corridor + 22 + count * _LANE
    bottom = max(box.y + box.height for box in (*left, *right))
    head_width = max(columns(" ".join(word for word, _ in line.words)) for line in head) * LETTER
    return Layout(left, right, lanes, head, max(width, head_width + 2 * _PAD), bottom + 20)


def _head(drawing: Drawing, limit: int) -> Iterator[Line]:
    chart = drawing.chart
    yield Line([(chart.name, "")], "name")
    texts = [chart.doc, f"Flags: {', '.join(chart.flags)}." if chart.flags else ""]
    if drawing.at is not None:
        texts.append(f"Now in {drawing.at}.")
    for text in texts:
        for words in wrapped([(text, "")], limit):
            yield Line(words, "soft")
    for words in wrapped([(_LEGEND, "")], limit):
        yield Line(words, "soft")


def _columns(drawing: Drawing) -> tuple[list[Box], list[Box]]:
    """Distribute the boxes over the columns: in their order, with heights as equal as possible."""
    chart = drawing.chart
    colors = _colors(drawing)
    boxes = []
    for state in chart.states:
        leaves = [
            _box(drawing, leaf.name, "leaf", leaf.doc, colors, final=leaf.final) for leaf in state.leaves
        ]
        if state.is_simple:
            boxes += leaves
        else:
            around = _box(drawing, state.name, "state", state.doc, colors)
            around.inside = leaves
            boxes.append(around)
    choices = [_box(drawing, choice.name, "choice", choice.doc, colors) for choice in chart.choices]
    total = sum(box.rows for box in (*boxes, *choices))
    if total < _LEAST_ROWS_TO_SPLIT:
        return [*boxes, *choices], []

    def higher(split: int) -> int:
        return max(sum(box.rows for box in boxes[:split]), sum(box.rows for box in boxes[split:]))

    split = min(range(1, len(boxes) + 1), key=higher)
    left, right = boxes[:split], boxes[split:]
    for choice in choices:
        shorter = min((left, right), key=lambda column: sum(box.rows for box in column))
        shorter.append(choice)
    return left, right


def _colors(drawing: Drawing) -> dict[str, int]:
    """Return the colour of each target: that of its state; choices have the next one."""
    found = {leaf.name: index for index, state in enumerate(drawing.chart.states) for leaf in state.leaves}
    return found | {choice.name: len(drawing.chart.states) for choice in drawing.chart.choices}


def _box(
    drawing: Drawing, name: str, kind: str, doc: str, colors: dict[str, int], *, final: bool = False
) -> Box:
    title = f"{name} \u25ce" if final else name
    box = Box(name, kind, doc, final=final, lit=drawing.lit(name) if kind == "leaf" else "")
    box.lines = [Line(words, "name") for words in wrapped([(title, "")], LIMIT)] or [Line([("", "")], "name")]
    box.lines += [Line(words, "soft") for words in wrapped([(doc, "")], LIMIT)]
    for arrow in drawing.arrows(name):
        for index, words in enumerate(wrapped(_words(arrow, colors), LIMIT)):
            box.lines.append(Line(words, target=None if index else arrow.target, doc=arrow.doc))
    return box


def _words(arrow: Arrow, colors: dict[str, int]) -> list[tuple[str, str]]:
    taken = (f"({arrow.taken})" if arrow.taken else "", "name")
    if arrow.target is None:
        return [("\u21ba", "soft"), (replace(arrow, taken="").label, ""), taken]
    return [
        (", ".join(arrow.events), ""),
        (f"[{arrow.guard}]" if arrow.guard else "", ""),
        (f"/ {arrow.change}" if arrow.change else "", "soft"),
        taken,
        (f"\u2192 {arrow.target}", f"t{colors[arrow.target] % COLORS}"),
    ]


def _width(column: list[Box]) -> float:
    return max((box.columns for box in column), default=0) * LETTER + 2 * _PAD if column else 0.0


def _stack(column: list[Box], x: float, top: float, width: float) -> None:
    y = top
    for box in column:
        y = _place(box, x, y, width)


def _place(box: Box, x: float, y: float, width: float) -> float:
    """Place a box with its first line at ``y``; return the ``y`` of the next box's first line."""
    box.x, box.y, box.width = x, y - LINE * 0.9, width
    for line in box.lines:
        line.y = y
        y += LINE
    y += LINE  # the gap in which this box ends and the next one begins
    for inner in box.inside:
        y = _place(inner, x + _PAD, y, width - 2 * _PAD)
    last = y - 2 * LINE
    box.height = last + LINE * (1.2 if box.inside else 0.72) - box.y
    return y + LINE if box.inside else y


def _lanes(drawing: Drawing, left: list[Box], right: list[Box]) -> list[Lane]:
    colors = _colors(drawing)
    lanes: dict[str, Lane] = {}
    named = {
        box.name: (box, side)
        for side, column in ((False, left), (True, right))
        for one in column
        for box in one.all()
        if box.kind != "state"
    }
    for side, column in ((False, left), (True, right)):
        for box in (each for one in column for each in one.all()):
            for line in box.lines:
                if line.target is not None:
                    target, where = named[line.target]
                    lane = lanes.setdefault(line.target, Lane(target, where, colors[line.target] % COLORS))
                    lane.sources.append((box, side, line))
    return list(lanes.values())


def _give_lanes(lanes: list[Lane]) -> int:
    """Number the lanes; return how many numbers there are. Two lanes that are far apart may share one."""

    def length(lane: Lane) -> float:
        top, bottom = lane.span
        return bottom - top

    # Short lanes are close to the column that they lead to.
    order = sorted((lane for lane in lanes if not lane.right), key=length)
    order += sorted((lane for lane in lanes if lane.right), key=length, reverse=True)
    tracks: list[list[Lane]] = []
    for lane in order:
        top, bottom = lane.span
        free = next(
            (
                track
                for track in tracks
                if track[0].right == lane.right
                and all(bottom + LINE < other.span[0] or other.span[1] + LINE < top for other in track)
            ),
            None,
        )
        if free is None:
            tracks.append(free := [])
        free.append(lane)
    for index, track in enumerate(tracks):
        for lane in track:
            lane.x = index
    return len(tracks)
