"""Mermaid state diagrams (``stateDiagram-v2``).

A transition that only changes flags stays where it is, which Mermaid has no arrow for: these stand in
a note beside their leaf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from statecharts.chart import Chart, Leaf, State, Transition
from statecharts.renderers._words import change_in_words, guard_in_words

__all__ = ["render_mermaid"]

_PLAIN = frozenset(" _-.,()[]/=!+'")
"""What beside letters and digits means nothing to Mermaid in a label."""


def render_mermaid(chart: Chart) -> str:
    """Render a chart as a Mermaid state diagram."""
    return "\n".join(_lines(chart)) + "\n"


def _lines(chart: Chart) -> Iterator[str]:
    identifiers = _identifiers(chart)
    yield "stateDiagram-v2"
    for state in chart.states:
        yield from _state(chart, state, identifiers)
    for choice in chart.choices:
        yield f"    state {identifiers[choice.name]} <<choice>>"
    yield f"    [*] --> {identifiers[chart.initial]}"
    for transition in chart.transitions:
        if transition.target is not None:
            source, target = identifiers[transition.source], identifiers[transition.target]
            yield f"    {source} --> {target} : {_label(transition)}"
    for choice in chart.choices:
        here = identifiers[choice.name]
        for branch in choice.branches:
            yield f"    {here} --> {identifiers[branch.target]} : [{_escape(branch.flag)}]"
        yield f"    {here} --> {identifiers[choice.otherwise]} : [else]"
    for state in chart.states:
        yield from _ends(state, identifiers)


def _state(chart: Chart, state: State, identifiers: dict[str, str]) -> Iterator[str]:
    if state.is_simple:
        yield from _leaf(chart, state.leaves[0], identifiers, "    ")
        return
    yield f'    state "{_escape(state.name)}" as {identifiers[state.name]} {{'
    for leaf in state.leaves:
        yield from _leaf(chart, leaf, identifiers, "        ")
    yield "    }"


def _ends(state: State, identifiers: dict[str, str]) -> Iterator[str]:
    final = [leaf.name for leaf in state.leaves if leaf.final]
    whole = len(final) == len(state.leaves)
    for name in [state.name] if whole else final:
        yield f"    {identifiers[name]} --> [*]"


def _leaf(chart: Chart, leaf: Leaf, identifiers: dict[str, str], indent: str) -> Iterator[str]:
    yield f'{indent}state "{_escape(leaf.name)}" as {identifiers[leaf.name]}'
    # A transition of the leaf's own hides that of the state around it, unless a guard may let it by.
    hidden = {
        transition.event
        for transition in chart.transitions
        if transition.source == leaf.name and not guard_in_words(transition)
    }
    stays = [
        transition
        for transition in chart.transitions
        if transition.target is None
        and leaf.name in chart.leaves_of(transition.source)
        and (transition.source == leaf.name or transition.event not in hidden)
    ]
    if stays:
        yield f"{indent}note right of {identifiers[leaf.name]}"
        for transition in stays:
            # Mermaid ends a note at these two words, wherever they stand.
            label = re.sub(r"(?i)(end) (note)", r"\1#32;\2", _label(transition))
            yield f"{indent}    {label}"
        yield f"{indent}end note"


def _label(transition: Transition) -> str:
    guard, change = guard_in_words(transition), change_in_words(transition)
    label = _escape(transition.event)
    if guard:
        label += f" [{_escape(guard)}]"
    if change:
        label += f" / {_escape(change)}"
    return label


def _identifiers(chart: Chart) -> dict[str, str]:
    """Choose a word for each place: Mermaid takes no other signs in the names that arrows use.

    ``ALIVE.SERVING`` becomes ``ALIVE_SERVING``. The upper level and the choices keep their names, with
    an underscore behind, so that no word of Mermaid's own (``end``, ``note``, ``state``) is used.
    """
    wanted: dict[str, str] = {}
    for state in chart.states:
        wanted[state.name] = f"{state.name}_"
        for leaf in state.leaves:
            if not state.is_simple:
                wanted[leaf.name] = f"{state.name}_{leaf.name}"
    for choice in chart.choices:
        wanted[choice.name] = f"{choice.name}_"
    chosen: dict[str, str] = {}
    for name, word in wanted.items():
        plain = re.sub(r"[^A-Za-z0-9_]", "_", word)
        free, number = plain, 2
        while free in chosen.values():
            free, number = f"{plain}{number}", number + 1
        chosen[name] = free
    return chosen


def _escape(text: str) -> str:
    """Write what could mean something to Mermaid as a numbered entity; every kind of space as one."""
    spaced = " ".join(text.split())
    return "".join(sign if sign.isalnum() or sign in _PLAIN else f"#{ord(sign)};" for sign in spaced)
