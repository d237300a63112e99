"""The input of every renderer: a chart, with the states to highlight.

>>> from statecharts.lifecycles import ACTOR
>>> drawing = Drawing(ACTOR, at="ALIVE.SERVING")
>>> drawing.lit("SERVING"), drawing.lit("SUSPECT")
('live', '')
>>> [str(arrow) for arrow in drawing.arrows("SERVING")]
['suspect -> SUSPECT']
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from statecharts._registry import CHART_RENDERERS, NOTEBOOK_VIEWS
from statecharts.chart import Chart, Choice, Transition

__all__ = ["Arrow", "Drawing", "Pass", "change_text", "guard_text", "transition_text"]


_WHOLE_SECONDS_FROM = 10.0


def guard_text(transition: Transition) -> str:
    """Return the guard of a transition as text (``"FAULTED and not STALE"``), empty if it has none."""
    return " and ".join([*transition.when, *(f"not {flag}" for flag in transition.unless)])


def change_text(transition: Transition) -> str:
    """Return the flag changes of a transition as text (``"set STALE, clear FAULTED"``), or empty."""
    sets = [f"set {flag}" for flag in transition.sets]
    clears = [f"clear {flag}" for flag in transition.clears]
    return ", ".join(sets + clears)


def transition_text(transition: Transition) -> str:
    """Return everything but the target as text: ``"pause [FAULTED] / set REQUESTED"``."""
    return _label(transition.event, guard_text(transition), change_text(transition))


def _label(events: str, guard: str, change: str) -> str:
    return " ".join(
        part for part in (events, f"[{guard}]" if guard else "", f"/ {change}" if change else "") if part
    )


@dataclass(frozen=True, slots=True)
class Arrow:
    """One arrow of a picture: transitions that differ in their event only.

    Parameters
    ----------
    source
        The leaf, state or choice that it leaves.
    target
        The leaf or choice that it leads to; None if only flags change.
    events
        The events that trigger it; empty for arrows out of a choice.
    guard, change
        As text, see [`Transition`][statecharts.Transition]; empty if there is none.
    doc
        The reasons of its transitions, in the order of the events, where they have one.
    """

    source: str
    target: str | None
    events: tuple[str, ...] = ()
    guard: str = ""
    change: str = ""
    doc: str = ""
    taken: str = ""
    """How often it was taken, and after what average time, as text; empty if unknown."""

    @property
    def label(self) -> str:
        """Everything but the target: ``"fault [not CANCELLING] / clear STALE (3 times, after 12 s)"``."""
        label = _label(", ".join(self.events), self.guard, self.change)
        return f"{label} ({self.taken})" if self.taken else label

    def __str__(self) -> str:
        return f"{self.label} -> {self.target or 'stay'}"


@dataclass(frozen=True, slots=True)
class Pass:
    """A transition that an object took, with its count.

    Parameters
    ----------
    source
        The leaf before it: ``"LEAF"`` or ``"STATE.LEAF"``.
    event
        The event.
    target
        The leaf after it; equal to the source if only flags changed.
    times
        How often it was taken.
    seconds
        Total time, in seconds, spent in ``source`` before it, over all times.
    """

    source: str
    event: str
    target: str
    times: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Drawing:
    """The input of a renderer: a chart, the current state, and the path that led there.

    A notebook displays it as a picture.

    Parameters
    ----------
    chart
        The chart.
    at
        The current position: ``"LEAF"``, ``"STATE.LEAF"``, or the text of a
        [`Configuration`][statecharts.Configuration] (``"PAUSED.STALE {STALE}"``). None highlights nothing.
    path
        The earlier leaves, in the same notation.
    passes
        The transitions taken so far, with their counts; pictures show the counts beside the arrows.
        Transitions that the chart does not have are left out.

    Raises
    ------
    ChartError
        If the chart has no such leaf.

    Examples
    --------
    >>> from statecharts.lifecycles import ENGINE
    >>> Drawing(ENGINE, at="PAUSED.STALE {STALE}").at
    'STALE'
    """

    chart: Chart
    at: str | None = None
    path: tuple[str, ...] = field(default=())
    passes: tuple[Pass, ...] = field(default=())
    _took: tuple[tuple[Transition | None, Pass], ...] = field(
        default=(), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.at is not None:
            object.__setattr__(self, "at", self._leaf_of(self.at))
        object.__setattr__(self, "path", tuple(self._leaf_of(place) for place in self.path))
        object.__setattr__(self, "passes", tuple(self.passes))
        object.__setattr__(self, "_took", tuple((self._way(one), one) for one in self.passes))

    def _leaf_of(self, place: str) -> str:
        flagless = place.partition(" {")[0] if place.endswith("}") else place
        for state in self.chart.states:
            for leaf in state.leaves:
                if {place, flagless} & {leaf.name, f"{state.name}.{leaf.name}"}:
                    return leaf.name
        return self.chart.leaf(place).name  # raises, listing the known leaves

    def lit(self, leaf: str) -> Literal["", "live", "passed"]:
        """Return ``"live"`` for the current leaf, ``"passed"`` for an earlier one, else ``""``."""
        if leaf == self.at:
            return "live"
        return "passed" if leaf in self.path else ""

    def arrows(self, source: str) -> tuple[Arrow, ...]:
        """Return the arrows out of a leaf, a state or a choice, without those of the surrounding state."""
        choice = next((one for one in self.chart.choices if one.name == source), None)
        if choice is not None:
            return _ways_out(choice)
        return self._merged(one for one in self.chart.transitions if one.source == source)

    def tally(self, *transitions: Transition) -> tuple[int, float]:
        """Return how often these were taken, and the average time, in seconds, spent in the leaf before."""
        passes = [one for way, one in self._took if way is not None and way in transitions]
        times = sum(one.times for one in passes)
        return times, sum(one.seconds for one in passes) / times if times else 0.0

    def taken(self, *transitions: Transition) -> str:
        """Return the tally as text (``"3 times, after 12 s"``), empty if there is none."""
        times, seconds = self.tally(*transitions)
        if not times:
            return ""
        return f"{'once' if times == 1 else f'{times} times'}, after {_span(seconds)}"

    def _way(self, one: Pass) -> Transition | None:
        """Return the transition that was taken. The flags are unknown, so its target identifies it."""
        source, target = self._leaf_of(one.source), self._leaf_of(one.target)
        choices = {choice.name: choice for choice in self.chart.choices}

        def leads(transition: Transition) -> bool:
            choice = choices.get(transition.target or "")
            if choice is not None:
                return target in {choice.otherwise, *(branch.target for branch in choice.branches)}
            return target == (source if transition.target is None else transition.target)

        fits = [
            each
            for each in self.chart.transitions
            if each.event == one.event and source in self.chart.leaves_of(each.source) and leads(each)
        ]
        return next((each for each in fits if each.source == source), fits[0] if fits else None)

    def _merged(self, transitions: Iterable[Transition]) -> tuple[Arrow, ...]:
        found: dict[tuple[str, str | None, str, str], list[Transition]] = {}
        for one in transitions:
            key = (one.source, one.target, guard_text(one), change_text(one))
            found.setdefault(key, []).append(one)
        return tuple(
            Arrow(
                source,
                target,
                tuple(one.event for one in same),
                guard,
                change,
                "; ".join(dict.fromkeys(f"{one.event}: {one.doc}" for one in same if one.doc)),
                self.taken(*same) if self.passes else "",
            )
            for (source, target, guard, change), same in found.items()
        )

    def stays(self, leaf: str) -> tuple[Transition, ...]:
        """Return the transitions that only change flags in a leaf, including those of the state around it."""
        # A transition of the leaf hides that of the state around it, unless it has a guard that may fail.
        hidden = {one.event for one in self.chart.transitions if one.source == leaf and not guard_text(one)}
        return tuple(
            one
            for one in self.chart.transitions
            if one.target is None
            and leaf in self.chart.leaves_of(one.source)
            and (one.source == leaf or one.event not in hidden)
        )

    def description(self) -> str:
        """Return a text alternative of the picture, for screen readers."""
        inside = [
            state.name
            if state.is_simple
            else f"{state.name} ({', '.join(leaf.name for leaf in state.leaves)})"
            for state in self.chart.states
        ]
        parts = [self.chart.doc, f"States: {', '.join(inside)}.", f"It begins in {self.chart.initial}."]
        if self.path:
            parts.append(f"It came through {', '.join(self.path)}.")
        if self.at is not None:
            parts.append(f"It is in {self.at} now.")
        return " ".join(part for part in parts if part)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {
            "image/svg+xml": CHART_RENDERERS["svg"](self),
            "text/markdown": CHART_RENDERERS["table"](self),
            "text/plain": f"<Drawing of chart {self.chart.name!r}>",
        }

    def _repr_svg_(self) -> str:
        return self._repr_mimebundle_()["image/svg+xml"]


def _ways_out(choice: Choice) -> tuple[Arrow, ...]:
    branches = [Arrow(choice.name, branch.target, guard=branch.flag) for branch in choice.branches]
    return (*branches, Arrow(choice.name, choice.otherwise, guard="else"))


def _span(seconds: float) -> str:
    """Format a duration briefly."""
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= _WHOLE_SECONDS_FROM else f"{seconds:.1f} s"


NOTEBOOK_VIEWS["chart"] = lambda chart: Drawing(chart)._repr_mimebundle_()
