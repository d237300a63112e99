"""Trees in the formats of charts: drawn from left to right, children in their order.

A node with a state has the colour that this state has in pictures of charts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from statecharts.renderers._sheet import LIGHT, LINE, number, sheet, text_line, text_width
from statecharts.renderers._text import quoted, unique_names, wrapped, xml
from statecharts.renderers.mermaid import escape_for_mermaid
from statecharts.renderers.scxml import NAMESPACE, xml_identifier
from statecharts.renderers.table import table_lines
from statecharts.tree import Tree

__all__ = [
    "render_tree_dot",
    "render_tree_json",
    "render_tree_mermaid",
    "render_tree_scxml",
    "render_tree_svg",
    "render_tree_table",
]

_COLUMNS = 40
_PAD = 12
_GAP = 14
_ACROSS = 48
_COLORS: Final[Mapping[str, int]] = MappingProxyType(
    dict.fromkeys(("ALIVE", "RUNNING", "SUCCEEDED"), 0)
    | dict.fromkeys(("PAUSED", "PENDING"), 1)
    | dict.fromkeys(("RESTARTING", "RETRYING", "STARTING", "STOPPING"), 2)
    | dict.fromkeys(("DEAD", "DOWN", "FAILED", "CANCELLED"), 3)
)
"""The colours of the states of ``statecharts.lifecycles``; other states have none."""


def _lines(node: Tree) -> list[str]:
    """Return the lines of a node's box, its name first."""
    return [
        node.name,
        *([node.state] if node.state else []),
        *(f"{name}: {value}" for name, value in node.facts),
    ]


def _color(node: Tree) -> int | None:
    return _COLORS.get(node.state.partition(".")[0].partition(" ")[0])


def _edges(tree: Tree) -> Iterator[tuple[int, int]]:
    """Yield the numbers of each parent and child; nodes are numbered in the order of ``nodes()``."""
    count = 0
    waiting: list[tuple[int, Tree]] = [(-1, tree)]
    while waiting:
        above, node = waiting.pop()
        if above >= 0:
            yield above, count
        waiting += [(count, child) for child in reversed(node.children)]
        count += 1


def render_tree_mermaid(tree: Tree) -> str:
    """Render a tree as a Mermaid flowchart."""
    lines = ["flowchart LR"]
    for index, node in enumerate(tree.nodes()):
        text = "<br/>".join(escape_for_mermaid(line) for line in _lines(node))
        lines.append(f'    n{index}["{text}"]')
    lines += [f"    n{above} --> n{below}" for above, below in _edges(tree)]
    for index, node in enumerate(tree.nodes()):
        color = _color(node)
        if color is not None:
            lines.append(f"    style n{index} stroke:{LIGHT[color]},stroke-width:3px")
    return "\n".join(lines) + "\n"


def render_tree_dot(tree: Tree) -> str:
    """Render a tree for Graphviz."""
    lines = [f'digraph "{quoted(tree.name)}" {{', "    graph [rankdir=LR];"]
    lines.append('    node [shape=box, style=rounded, fontname="Helvetica", fontsize=11];')
    for index, node in enumerate(tree.nodes()):
        text = "\\l".join(quoted(line) for line in _lines(node))
        color = _color(node)
        lit = "" if color is None else f', color="{LIGHT[color]}", penwidth=3'
        lines.append(f'    n{index} [label="{text}\\l"{lit}];')
    lines += [f"    n{above} -> n{below};" for above, below in _edges(tree)]
    return "\n".join([*lines, "}"]) + "\n"


def render_tree_scxml(tree: Tree) -> str:
    """Render a tree as SCXML: a state for each node, a parallel state for each node with children."""
    names = unique_names([(str(index), xml_identifier(node.name)) for index, node in enumerate(tree.nodes())])
    numbers = iter(names.values())

    def written(node: Tree, indent: str) -> Iterator[str]:
        element = "parallel" if node.children else "state"
        facts = "; ".join(f"{name}: {value}" for name, value in node.facts)
        attributes = f' id="{next(numbers)}" chart:name="{xml(node.name)}"'
        attributes += f' chart:live="{xml(node.state)}"' if node.state else ""
        attributes += f' chart:doc="{xml(facts)}"' if facts else ""
        if not node.children:
            yield f"{indent}<{element}{attributes}/>"
            return
        yield f"{indent}<{element}{attributes}>"
        for child in node.children:
            yield from written(child, f"{indent}  ")
        yield f"{indent}</{element}>"

    head = f'<scxml xmlns="http://www.w3.org/2005/07/scxml" xmlns:chart="{NAMESPACE}" version="1.0"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', head]
    lines.append(f'       datamodel="null" name="{xml_identifier(tree.name)}" initial="{names["0"]}">')
    return "\n".join([*lines, *written(tree, "  "), "</scxml>"]) + "\n"


def render_tree_table(tree: Tree) -> str:
    """Render a tree as a Markdown table: a row for each node in start order, a column for each fact."""
    facts = list(dict.fromkeys(name for node in tree.nodes() for name, _ in node.facts))
    depths = {0: 0}
    for above, below in _edges(tree):
        depths[below] = depths[above] + 1
    rows = []
    for index, node in enumerate(tree.nodes()):
        values = dict(node.facts)
        name = f"{chr(0x2192) * depths[index]} {node.name}".strip()
        rows.append((name, node.state, *(values.get(fact, "") for fact in facts)))
    return "\n".join(table_lines(("Name", "State", *facts), rows)) + "\n"


def render_tree_json(tree: Tree) -> str:
    """Render a tree as JSON."""

    def model(node: Tree) -> dict[str, Any]:
        return {
            "name": node.name,
            "state": node.state or None,
            "facts": dict(node.facts),
            "children": [model(child) for child in node.children],
        }

    return json.dumps({"kind": "tree", "version": 1, **model(tree)}, indent=2, ensure_ascii=False) + "\n"


@dataclass(slots=True)
class _Box:
    """A node with its position in the picture; ``y`` is the top edge."""

    node: Tree
    lines: list[list[tuple[str, str]]]
    depth: int
    below: list[_Box] = field(default_factory=list)
    y: float = 0.0

    @property
    def height(self) -> float:
        return (len(self.lines) + 0.7) * LINE

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    def all(self) -> Iterator[_Box]:
        yield self
        for box in self.below:
            yield from box.all()


def render_tree_svg(tree: Tree) -> str:
    """Render a tree as an SVG picture."""
    root = _box(tree, 0)
    bottom = _stack(root, _GAP)
    boxes = list(root.all())
    depth = max(box.depth for box in boxes)
    widths = [
        2 * _PAD
        + max(
            text_width(" ".join(word for word, _ in line))
            for box in boxes
            if box.depth == level
            for line in box.lines
        )
        for level in range(depth + 1)
    ]
    xs = [_GAP + sum(widths[:level]) + level * _ACROSS for level in range(depth + 1)]
    size = (xs[-1] + widths[-1] + _GAP, bottom)
    description = f"A tree of {len(boxes)} nodes: {', '.join(box.node.name for box in boxes)}."
    parts = sheet("Tree", tree.name, description, size, _body(boxes, xs, widths))
    return "\n".join(parts) + "\n"


def _box(node: Tree, depth: int) -> _Box:
    first, *rest = _lines(node)
    lines = [*(wrapped([(first, "name")], _COLUMNS) or [[("", "")]])]
    for text in rest:
        lines += wrapped([(text, _state_style(node) if text == node.state else "soft")], _COLUMNS)
    return _Box(node, lines, depth, [_box(child, depth + 1) for child in node.children])


def _state_style(node: Tree) -> str:
    color = _color(node)
    return "name" if color is None else f"name t{color}"


def _stack(box: _Box, top: float) -> float:
    """Centre a box beside its subtree; return the top of the next box."""
    bottom = top
    for child in box.below:
        bottom = _stack(child, bottom)
    if not box.below:
        box.y = top
        return top + box.height + _GAP
    middle = (box.below[0].middle + box.below[-1].middle) / 2
    box.y = middle - box.height / 2
    if box.y < top:
        # The box is taller than its subtree, so the subtree moves down to its middle.
        shift = top - box.y
        for each in box.all():
            each.y += shift
    return max(bottom + (max(0.0, top - (middle - box.height / 2))), box.y + box.height + _GAP)


def _body(boxes: list[_Box], xs: list[float], widths: list[float]) -> Iterator[str]:
    for box in boxes:
        right = xs[box.depth] + widths[box.depth]
        for child in box.below:
            end = xs[child.depth]
            bend, tip = number(right + _ACROSS / 2), number(end - 1)
            yield (
                f'<path class="plain" d="M{number(right)} {number(box.middle)}H{bend}V{number(child.middle)}'
                f'H{number(end - 7)}"/>'
            )
            y, base = child.middle, number(end - 7)
            yield f'<path class="dot" d="M{tip} {number(y)}L{base} {number(y - 4)}V{number(y + 4)}Z"/>'
    for box in boxes:
        x, width = xs[box.depth], widths[box.depth]
        yield f"<g><title>{xml(box.node.name)}</title>"
        color = _color(box.node)
        look, thick = ("", "") if color is None else (f" c{color}", ' stroke-width="2.5"')
        yield (
            f'<rect class="{"frame" if box.below else "card"}{look}" x="{number(x)}" y="{number(box.y)}" '
            f'width="{number(width)}" height="{number(box.height)}" rx="8"{thick}/>'
        )
        for index, words in enumerate(box.lines):
            yield text_line(x + _PAD, box.y + (index + 1.05) * LINE, words)
        yield "</g>"
