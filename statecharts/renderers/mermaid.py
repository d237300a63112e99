"""Mermaid state diagrams (``stateDiagram-v2``).

Mermaid has no arrow for transitions that only change flags, so these are listed in a note beside their leaf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from statecharts.chart import Leaf, State, Transition
from statecharts.drawing import Drawing, change_text, guard_text
from statecharts.renderers._text import unique_names

__all__ = ["escape_for_mermaid", "render_mermaid"]

_PLAIN = frozenset(" _-.,()[]/=!+'")
"""Characters, beside letters and digits, that have no special meaning in a label."""

_LIT = {
    "live": "fill:#ffd866,stroke:#b26a00,stroke-width:3px,color:#1f2328",
    "passed": "fill:#fff4d1,stroke:#b26a00,stroke-width:2px,color:#1f2328",
}
"""The style of highlighted leaves, for light and dark pages."""


def render_mermaid(drawing: Drawing) -> str:
    """Render a chart as a Mermaid state diagram."""
    return "\n".join(_lines(drawing)) + "\n"


def _lines(drawing: Drawing) -> Iterator[str]:
    chart = drawing.chart
    identifiers = _identifiers(drawing)
    yield "stateDiagram-v2"
    for state in chart.states:
        yield from _state(drawing, state, identifiers)
    for choice in chart.choices:
        yield f"    state {identifiers[choice.name]} <<choice>>"
    yield f"    [*] --> {identifiers[chart.initial]}"
    for transition in chart.transitions:
        if transition.target is not None:
            source, target = identifiers[transition.source], identifiers[transition.target]
            yield f"    {source} --> {target} : {_label(drawing, transition)}"
    for choice in chart.choices:
        here = identifiers[choice.name]
        for branch in choice.branches:
            yield f"    {here} --> {identifiers[branch.target]} : [{escape_for_mermaid(branch.flag)}]"
        yield f"    {here} --> {identifiers[choice.otherwise]} : [else]"
    for state in chart.states:
        yield from _ends(state, identifiers)
    for how, style in _LIT.items():
        lit = [identifiers[leaf.name] for leaf in chart.leaves if drawing.lit(leaf.name) == how]
        if lit:
            yield f"    classDef {how} {style}"
            yield f"    class {','.join(lit)} {how}"


def _state(drawing: Drawing, state: State, identifiers: dict[str, str]) -> Iterator[str]:
    if state.is_simple:
        yield from _leaf(drawing, state.leaves[0], identifiers, "    ")
        return
    yield f'    state "{escape_for_mermaid(state.name)}" as {identifiers[state.name]} {{'
    for leaf in state.leaves:
        yield from _leaf(drawing, leaf, identifiers, "        ")
    yield "    }"


def _ends(state: State, identifiers: dict[str, str]) -> Iterator[str]:
    final = [leaf.name for leaf in state.leaves if leaf.final]
    whole = len(final) == len(state.leaves)
    for name in [state.name] if whole else final:
        yield f"    {identifiers[name]} --> [*]"


def _leaf(drawing: Drawing, leaf: Leaf, identifiers: dict[str, str], indent: str) -> Iterator[str]:
    yield f'{indent}state "{escape_for_mermaid(leaf.name)}" as {identifiers[leaf.name]}'
    stays = drawing.stays(leaf.name)
    if stays:
        yield f"{indent}note right of {identifiers[leaf.name]}"
        for transition in stays:
            # Mermaid ends a note at these two words, even in the middle of a line.
            label = re.sub(r"(?i)(end) (note)", r"\1#32;\2", _label(drawing, transition))
            yield f"{indent}    {label}"
        yield f"{indent}end note"


def _label(drawing: Drawing, transition: Transition) -> str:
    guard, change = guard_text(transition), change_text(transition)
    label = escape_for_mermaid(transition.event)
    if guard:
        label += f" [{escape_for_mermaid(guard)}]"
    if change:
        label += f" / {escape_for_mermaid(change)}"
    taken = drawing.taken(transition)
    if taken:
        label += f" ({escape_for_mermaid(taken)})"
    return label


def _identifiers(drawing: Drawing) -> dict[str, str]:
    """Choose an identifier for each state, leaf and choice.

    ``ALIVE.SERVING`` becomes ``ALIVE_SERVING``. States and choices keep their names with a trailing
    underscore, so that no keyword of Mermaid (``end``, ``note``, ``state``) is used.
    """
    wanted: dict[str, str] = {}
    for state in drawing.chart.states:
        wanted[state.name] = f"{state.name}_"
        for leaf in state.leaves:
            if not state.is_simple:
                wanted[leaf.name] = f"{state.name}_{leaf.name}"
    for choice in drawing.chart.choices:
        wanted[choice.name] = f"{choice.name}_"
    return unique_names(list(wanted.items()))


def escape_for_mermaid(text: str) -> str:
    """Escape characters with a meaning in Mermaid as numeric entities; collapse whitespace.

    A blank text becomes a no-break space: Mermaid does not parse an empty label.
    """
    # Mermaid reads a backslash and an n as a new line, even as entities. A word joiner separates them.
    spaced = " ".join(text.split()).replace("\\n", "\\\u2060n")
    return (
        "".join(sign if sign.isalnum() or sign in _PLAIN else f"#{ord(sign)};" for sign in spaced) or "#160;"
    )
