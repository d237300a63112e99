"""SCXML 1.0 (https://www.w3.org/TR/scxml/) with the same semantics.

Flags are boolean variables of the ECMAScript datamodel; guards are ``cond``, changes are ``assign``. A choice
is a state that is left immediately by transitions without an event. A transition that stays has no target.
Inner states take precedence over outer ones in both. Therefore an SCXML interpreter takes the same steps as
the compiled table.

Attributes of the namespace ``urn:statecharts:1`` hold what SCXML cannot express: ``name`` (the name in the
chart, if it is not a valid identifier), ``doc``, ``final`` (SCXML's own ``final`` cannot be left again, so it
is used only for leaves without a transition), ``live`` and ``passed`` for highlighted states, ``taken`` and
``after`` for how often a transition was taken, and after how many seconds on average.
"""

from __future__ import annotations

from collections.abc import Iterator

from statecharts.chart import Choice, Leaf, State, Transition
from statecharts.drawing import Drawing
from statecharts.renderers._text import unique_names, xml

__all__ = ["NAMESPACE", "render_scxml", "xml_identifier"]

NAMESPACE = "urn:statecharts:1"
"""Namespace of the attributes that are not part of SCXML."""


def render_scxml(drawing: Drawing) -> str:
    """Render a chart as an SCXML document."""
    return "\n".join(_Document(drawing).lines()) + "\n"


class _Document:
    """One document: its identifiers and its lines."""

    def __init__(self, drawing: Drawing) -> None:
        chart = drawing.chart
        self._drawing = drawing
        self._chart = chart
        places = [state.name for state in chart.states if not state.is_simple]
        places += [leaf.name for leaf in chart.leaves] + [choice.name for choice in chart.choices]
        # All of them are identifiers of one document. A state and a flag may have the same name.
        wanted = [(f"place {name}", xml_identifier(name)) for name in places]
        wanted += [(f"flag {name}", f"flag_{name}") for name in chart.flags]
        names = unique_names(wanted)
        self._places = {name: names[f"place {name}"] for name in places}
        self._flags = {name: names[f"flag {name}"] for name in chart.flags}
        self._events = unique_names([(name, name) for name in chart.events], "A-Za-z0-9_-")

    def lines(self) -> Iterator[str]:
        """Yield all lines."""
        chart = self._chart
        yield '<?xml version="1.0" encoding="UTF-8"?>'
        yield '<scxml xmlns="http://www.w3.org/2005/07/scxml"'
        yield f'       xmlns:chart="{NAMESPACE}"'
        name = xml_identifier(chart.name)
        yield f'       version="1.0" datamodel="ecmascript" name="{name}"'
        yield f'       initial="{self._places[chart.initial]}"{self._own(chart.name, name, chart.doc)}>'
        if chart.flags:
            yield "  <datamodel>"
            for flag in chart.flags:
                name = self._flags[flag]
                yield f'    <data id="{name}" expr="false"{self._own(flag, name.removeprefix("flag_"))}/>'
            yield "  </datamodel>"
        for state in chart.states:
            yield from self._state(state)
        for choice in chart.choices:
            yield from self._choice(choice)
        yield "</scxml>"

    def _state(self, state: State) -> Iterator[str]:
        if state.is_simple:
            yield from self._leaf(state.leaves[0], "  ", outer=False)
            return
        name = self._places[state.name]
        yield f'  <state id="{name}"{self._own(state.name, name, state.doc)}>'
        yield from self._transitions(state.name, "    ")
        outer = any(one.source == state.name for one in self._chart.transitions)
        for leaf in state.leaves:
            yield from self._leaf(leaf, "    ", outer=outer)
        yield "  </state>"

    def _leaf(self, leaf: Leaf, indent: str, *, outer: bool) -> Iterator[str]:
        inside = list(self._transitions(leaf.name, f"{indent}  "))
        name = self._places[leaf.name]
        lit = self._drawing.lit(leaf.name)
        element = "final" if leaf.final and not inside and not outer else "state"
        attributes = f'id="{name}"{self._own(leaf.name, name, leaf.doc)}'
        if leaf.final:
            attributes += ' chart:final="true"'
        if lit:
            attributes += f' chart:{lit}="true"'
        if not inside:
            yield f"{indent}<{element} {attributes}/>"
            return
        yield f"{indent}<{element} {attributes}>"
        yield from inside
        yield f"{indent}</{element}>"

    def _choice(self, choice: Choice) -> Iterator[str]:
        name = self._places[choice.name]
        yield f'  <state id="{name}"{self._own(choice.name, name, choice.doc)}>'
        for branch in choice.branches:
            target = self._places[branch.target]
            yield f'    <transition cond="{self._flags[branch.flag]}" target="{target}"/>'
        yield f'    <transition target="{self._places[choice.otherwise]}"/>'
        yield "  </state>"

    def _transitions(self, source: str, indent: str) -> Iterator[str]:
        for one in self._chart.transitions:
            if one.source == source:
                yield from self._transition(one, indent)

    def _transition(self, one: Transition, indent: str) -> Iterator[str]:
        event = self._events[one.event]
        attributes = f'event="{event}"'
        asked = [self._flags[flag] for flag in one.when] + [f"!{self._flags[flag]}" for flag in one.unless]
        if asked:
            attributes += f' cond="{xml(" && ".join(asked))}"'
        if one.target is not None:
            attributes += f' target="{self._places[one.target]}"'
        attributes += self._own(one.event, event, one.doc)
        times, seconds = self._drawing.tally(one)
        if times:
            attributes += f' chart:taken="{times}" chart:after="{seconds:.3f}"'
        changes = [(flag, "true") for flag in one.sets] + [(flag, "false") for flag in one.clears]
        if not changes:
            yield f"{indent}<transition {attributes}/>"
            return
        yield f"{indent}<transition {attributes}>"
        for flag, value in changes:
            yield f'{indent}  <assign location="{self._flags[flag]}" expr="{value}"/>'
        yield f"{indent}</transition>"

    def _own(self, name: str, identifier: str, doc: str = "") -> str:
        named = f' chart:name="{xml(name)}"' if name != identifier else ""
        return named + (f' chart:doc="{xml(doc)}"' if doc else "")


def xml_identifier(name: str) -> str:
    """Return a valid XML identifier, which begins with a letter or an underscore."""
    word = next(iter(unique_names([("", name)]).values()))
    return word if word[:1].isalpha() else f"_{word}"
