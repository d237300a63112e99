"""What every renderer is given: a chart, and how much of it is lit.

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

from statecharts._registry import CHARTS, NOTEBOOK
from statecharts.chart import Chart, Choice, Transition

__all__ = ["Arrow", "Drawing", "Pass", "change_in_words", "guard_in_words", "transition_in_words"]


def guard_in_words(transition: Transition) -> str:
    """Say when a transition is enabled: ``"FAULTED and not STALE"``, or nothing."""
    return " and ".join([*transition.when, *(f"not {flag}" for flag in transition.unless)])


def change_in_words(transition: Transition) -> str:
    """Say what a transition does to the flags: ``"set STALE, clear FAULTED"``, or nothing."""
    sets = [f"set {flag}" for flag in transition.sets]
    clears = [f"clear {flag}" for flag in transition.clears]
    return ", ".join(sets + clears)


def transition_in_words(transition: Transition) -> str:
    """Say all but where it leads: ``"pause [FAULTED] / set REQUESTED"``."""
    return _label(transition.event, guard_in_words(transition), change_in_words(transition))


def _label(events: str, guard: str, change: str) -> str:
    return " ".join(
        part for part in (events, f"[{guard}]" if guard else "", f"/ {change}" if change else "") if part
    )


@dataclass(frozen=True, slots=True)
class Arrow:
    """What a reader sees as one arrow: transitions that differ in nothing but their event.

    Parameters
    ----------
    source
        The leaf, state or choice that it leaves.
    target
        The leaf or choice that it leads to; None: it stays, and only flags change.
    events
        The events that lead along it; none out of a choice.
    guard, change
        In words, see [`Transition`][statecharts.Transition]; empty where there is none.
    doc
        Why, for each event in its order, where the transition says so.
    """

    source: str
    target: str | None
    events: tuple[str, ...] = ()
    guard: str = ""
    change: str = ""
    doc: str = ""
    taken: str = ""
    """How often it was taken, and after how long on average, in words; empty where that is not known."""

    @property
    def label(self) -> str:
        """All but where it leads: ``"fault [not CANCELLING] / clear STALE (3 times, after 12 s)"``."""
        label = _label(", ".join(self.events), self.guard, self.change)
        return f"{label} ({self.taken})" if self.taken else label

    def __str__(self) -> str:
        return f"{self.label} -> {self.target or 'stay'}"


@dataclass(frozen=True, slots=True)
class Pass:
    """A way that something took, and how often.

    Parameters
    ----------
    source
        The leaf that it was in, alone or behind its state.
    event
        What happened.
    target
        The leaf that it led to; the same one where only flags changed.
    times
        How often.
    seconds
        How long it had been in ``source`` before, all times together.
    """

    source: str
    event: str
    target: str
    times: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart as renderers are given it: the chart, the live state, and the path that led there.

    In a notebook it shows itself.

    Parameters
    ----------
    chart
        The chart.
    at
        Where the thing is now: a leaf, alone or behind its state, or what a
        [`Configuration`][statecharts.Configuration] prints (``"PAUSED.STALE {STALE}"``). None: nothing is
        lit.
    path
        The leaves it was in before, in the same words.
    passes
        How often it took which way: pictures say so where the way is written. A way that the chart does not
        have is left out.

    Raises
    ------
    ChartError
        When the chart has no such leaf.

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
        return self.chart.leaf(place).name  # raises, naming those that there are

    def lit(self, leaf: str) -> Literal["", "live", "passed"]:
        """Whether a leaf is where the thing is, or was."""
        if leaf == self.at:
            return "live"
        return "passed" if leaf in self.path else ""

    def arrows(self, source: str) -> tuple[Arrow, ...]:
        """What leads out of a leaf, a state or a choice: its own, not what the state around it has."""
        choice = next((one for one in self.chart.choices if one.name == source), None)
        if choice is not None:
            return _ways_out(choice)
        return self._merged(one for one in self.chart.transitions if one.source == source)

    def tally(self, *transitions: Transition) -> tuple[int, float]:
        """How often these were taken, and how many seconds the leaf before had lasted then, on average."""
        passes = [one for way, one in self._took if way is not None and way in transitions]
        times = sum(one.times for one in passes)
        return times, sum(one.seconds for one in passes) / times if times else 0.0

    def taken(self, *transitions: Transition) -> str:
        """Say the tally in words: ``"3 times, after 12 s"``, or nothing."""
        times, seconds = self.tally(*transitions)
        if not times:
            return ""
        return f"{'once' if times == 1 else f'{times} times'}, after {_span(seconds)}"

    def _way(self, one: Pass) -> Transition | None:
        """The transition that was taken; flags are not known, so it is told by where it led."""
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
            key = (one.source, one.target, guard_in_words(one), change_in_words(one))
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
        """What only changes flags in a leaf, that of the state around it included."""
        # A transition of the leaf's own hides that of the state around it, unless a guard may let it by.
        hidden = {
            one.event for one in self.chart.transitions if one.source == leaf and not guard_in_words(one)
        }
        return tuple(
            one
            for one in self.chart.transitions
            if one.target is None
            and leaf in self.chart.leaves_of(one.source)
            and (one.source == leaf or one.event not in hidden)
        )

    def in_words(self) -> str:
        """Say what the picture shows, for those who do not see it."""
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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002 - the notebook's protocol
        return {
            "image/svg+xml": CHARTS["svg"](self),
            "text/markdown": CHARTS["table"](self),
            "text/plain": f"<Drawing of chart {self.chart.name!r}>",
        }

    def _repr_svg_(self) -> str:
        return self._repr_mimebundle_()["image/svg+xml"]


def _ways_out(choice: Choice) -> tuple[Arrow, ...]:
    branches = [Arrow(choice.name, branch.target, guard=branch.flag) for branch in choice.branches]
    return (*branches, Arrow(choice.name, choice.otherwise, guard="else"))


def _span(seconds: float) -> str:
    """A time in few letters."""
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10.0 else f"{seconds:.1f} s"  # noqa: PLR2004 - tenths tell nothing then


NOTEBOOK["chart"] = lambda chart: Drawing(chart)._repr_mimebundle_()
