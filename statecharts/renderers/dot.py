"""Graphviz: a chart as a digraph, states as clusters.

A transition of a whole state leaves a small dot in the cluster's frame, so that no arrow has to be cut off
at a cluster. Transitions that only change flags are listed in the box of the leaf.
"""

from __future__ import annotations

from collections.abc import Iterator

from statecharts.chart import Leaf, State, Transition
from statecharts.drawing import Arrow, Drawing, transition_text
from statecharts.renderers._text import quoted, wrapped

__all__ = ["render_dot"]

_LIT = {
    "": "",
    "live": ', style="rounded,filled", fillcolor="#ffd866", color="#b26a00", penwidth=3',
    "passed": ', style="rounded,filled", fillcolor="#fff4d1", color="#b26a00"',
}
_LABEL_COLUMNS = 30


def render_dot(drawing: Drawing) -> str:
    """Render a chart for Graphviz."""
    return "\n".join(_lines(drawing)) + "\n"


def _lines(drawing: Drawing) -> Iterator[str]:
    chart = drawing.chart
    yield f'digraph "{quoted(chart.name)}" {{'
    yield '    graph [rankdir=LR, fontname="Helvetica", nodesep=0.4, ranksep=0.8, style=rounded];'
    yield '    node [shape=box, style=rounded, fontname="Helvetica", fontsize=11];'
    yield '    edge [fontname="Helvetica", fontsize=9];'
    if chart.doc:
        yield f'    label="{quoted(chart.doc)}"; labelloc=t;'
    yield '    "begin" [shape=point, width=0.15, label=""];'
    for number, state in enumerate(chart.states):
        yield from _state(drawing, state, number)
    for choice in chart.choices:
        label = quoted(choice.name)
        yield f'    {_node(drawing, choice.name)} [shape=diamond, style=solid, label="{label}"];'
    yield f'    "begin" -> {_node(drawing, chart.initial)};'
    sources = [name for state in chart.states for name in _sources(state)]
    for source in [*sources, *(choice.name for choice in chart.choices)]:
        together: dict[str, list[Arrow]] = {}
        for arrow in drawing.arrows(source):
            if arrow.target is not None:
                together.setdefault(arrow.target, []).append(arrow)
        for target, arrows in together.items():
            yield f"    {_node(drawing, source)} -> {_node(drawing, target)} {_label(arrows)};"
    yield "}"


def _sources(state: State) -> Iterator[str]:
    if not state.is_simple:
        yield state.name
    yield from (leaf.name for leaf in state.leaves)


def _node(drawing: Drawing, name: str) -> str:
    """Return the identifier of a state, leaf or choice; a state may have the name of its only leaf."""
    return f'"{"" if drawing.chart.is_leaf(name) else "~"}_{_exactly(name)}"'


def _exactly(text: str) -> str:
    """Escape a name so that names that differ in their whitespace only remain different."""
    return quoted("".join(f"%{ord(sign):x};" if sign.isspace() or sign == "%" else sign for sign in text))


def _state(drawing: Drawing, state: State, number: int) -> Iterator[str]:
    if state.is_simple:
        yield f"    {_leaf(drawing, state.leaves[0])}"
        return
    yield f"    subgraph cluster_{number} {{"
    yield f'        label="{quoted(state.name)}"; tooltip="{quoted(state.doc)}";'
    if any(arrow.target is not None for arrow in drawing.arrows(state.name)):
        yield f'        {_node(drawing, state.name)} [shape=point, width=0.08, label=""];'
    for leaf in state.leaves:
        yield f"        {_leaf(drawing, leaf)}"
    yield "    }"


def _leaf(drawing: Drawing, leaf: Leaf) -> str:
    stays = drawing.stays(leaf.name)
    lines = [
        quoted(leaf.name),
        *(f"{line}\\l" for one in stays for line in _wrapped(_stay(drawing, one))),
    ]
    text = lines[0] + ("\\n" + "".join(lines[1:]) if stays else "")
    ends = ", peripheries=2" if leaf.final else ""
    lit = _LIT[drawing.lit(leaf.name)]
    return f'{_node(drawing, leaf.name)} [label="{text}", tooltip="{quoted(leaf.doc)}"{ends}{lit}];'


def _stay(drawing: Drawing, one: Transition) -> str:
    taken = drawing.taken(one)
    return f"{transition_text(one)} ({taken})" if taken else transition_text(one)


def _label(arrows: list[Arrow]) -> str:
    text = "\\n".join(line for arrow in arrows for line in _wrapped(arrow.label))
    why = quoted("; ".join(arrow.doc for arrow in arrows if arrow.doc))
    return f'[label="{text}", tooltip="{why}"]'


def _wrapped(text: str) -> list[str]:
    return [quoted(" ".join(word for word, _ in line)) for line in wrapped([(text, "")], _LABEL_COLUMNS)]
