"""Compiled charts: every reachable configuration, and the configuration that each event leads to.

For example:

    >>> from statecharts.lifecycles import ENGINE
    >>> table = compile_chart(ENGINE)
    >>> serving = table.step(table.initial, "started")
    >>> print(table.initial, "->", serving)
    RESTARTING.STARTING -> ALIVE.SERVING
    >>> print(table.step(serving, "pause"))
    PAUSED.REQUESTED {REQUESTED}
    >>> table.step(serving, "retry") is None
    True
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, final

from statecharts.chart import Chart, Transition
from statecharts.errors import ChartError

__all__ = ["Configuration", "Table", "compile_chart"]


@final
class Configuration:
    """The position of an object in its chart: a leaf, the state around it, and the flags that are set.

    There is one instance for each value, shared by all objects with that configuration. Comparison and
    hashing are by identity, and a child costs one reference. Copying and unpickling return the same instance.
    """

    __slots__ = ("flags", "leaf", "state")

    state: str
    """The state of the upper level."""
    leaf: str
    """The leaf inside it."""
    flags: frozenset[str]
    """The flags that are set."""

    def __new__(cls, state: str, leaf: str, flags: Iterable[str] = ()) -> Configuration:
        """Return the one instance for these values; create it on first use."""
        key = (state, leaf, frozenset(flags))
        known = _CONFIGURATIONS.get(key)
        if known is not None:
            return known
        made = super().__new__(cls)
        for name, value in zip(("state", "leaf", "flags"), key, strict=True):
            object.__setattr__(made, name, value)
        # setdefault: two threads that create the same configuration concurrently get one instance.
        return _CONFIGURATIONS.setdefault(key, made)

    def __setattr__(self, name: str, value: object) -> None:
        msg = f"{self!r} is shared by all objects in it; {name} cannot be set"
        raise AttributeError(msg)

    def __delattr__(self, name: str) -> None:
        msg = f"{self!r} is shared by all objects in it; {name} cannot be deleted"
        raise AttributeError(msg)

    def __reduce__(self) -> tuple[type[Configuration], tuple[str, str, tuple[str, ...]]]:
        return Configuration, (self.state, self.leaf, tuple(sorted(self.flags)))

    @property
    def path(self) -> str:
        """State and leaf (``"PAUSED.FAULTED"``); one name only if the state is its own leaf."""
        return self.leaf if self.leaf == self.state else f"{self.state}.{self.leaf}"

    def __str__(self) -> str:
        return f"{self.path} {{{', '.join(sorted(self.flags))}}}" if self.flags else self.path

    def __repr__(self) -> str:
        return f"<Configuration {self}>"


# Holds as many entries as the charts of this process have configurations.
_CONFIGURATIONS: Final[dict[tuple[str, str, frozenset[str]], Configuration]] = {}


@final
class Table:
    """A compiled chart, made by [`compile_chart`][statecharts.compile_chart]."""

    __slots__ = ("_next", "chart", "configurations", "events", "initial")

    def __init__(
        self,
        chart: Chart,
        initial: Configuration,
        configurations: tuple[Configuration, ...],
        rows: Mapping[tuple[Configuration, str], Configuration],
    ) -> None:
        self.chart: Final = chart
        """The chart it was made from."""
        self.initial: Final = initial
        """The configuration of a new object."""
        self.configurations: Final = configurations
        """Every reachable configuration; the initial one first."""
        self.events: Final = chart.events
        """Every event that is accepted in some configuration."""
        self._next: Final = dict(rows)

    def step(self, configuration: Configuration, event: str) -> Configuration | None:
        """Return the configuration after an event. The cost is one dict lookup.

        Returns
        -------
        Configuration | None
            The next configuration, which may be ``configuration`` itself; None if the event is not
            accepted there.
        """
        return self._next.get((configuration, event))

    @property
    def rows(self) -> Mapping[tuple[Configuration, str], Configuration]:
        """The whole table, read-only: (configuration, event) to configuration."""
        return MappingProxyType(self._next)

    def __repr__(self) -> str:
        return (
            f"<Table of chart {self.chart.name!r}: {len(self.configurations)} configurations, "
            f"{len(self.events)} events, {len(self._next)} rows>"
        )


@lru_cache(maxsize=64)
def compile_chart(chart: Chart) -> Table:
    """Explore a chart from its initial leaf and tabulate every reachable step.

    Parameters
    ----------
    chart
        The chart. Compiling the same one again returns the same table.

    Raises
    ------
    ChartError
        If a leaf cannot be reached, if a transition is never taken, or if a leaf that is not final cannot
        be left under some reachable set of flags.
    """
    own = _by_leaf_and_event(chart)
    states = {leaf.name: state.name for state in chart.states for leaf in state.leaves}
    choices = {choice.name: choice for choice in chart.choices}
    initial = Configuration(states[chart.initial], chart.initial)
    rows: dict[tuple[Configuration, str], Configuration] = {}
    # A dict serves as an ordered set, so tables of equal charts are equal row by row.
    seen: dict[Configuration, None] = {initial: None}
    taken: set[Transition] = set()
    waiting = deque([initial])
    while waiting:
        here = waiting.popleft()
        for event in chart.events:
            transition = next((t for t in own.get((here.leaf, event), ()) if t.enabled(here.flags)), None)
            if transition is None:
                continue
            taken.add(transition)
            flags = transition.apply(here.flags)
            leaf = here.leaf if transition.target is None else transition.target
            if leaf in choices:
                leaf = choices[leaf].resolve(flags)
            there = Configuration(states[leaf], leaf, flags)
            rows[here, event] = there
            if there not in seen:
                seen[there] = None
                waiting.append(there)
    _check_reachable(chart, seen, taken)
    _check_can_leave(chart, seen, rows)
    return Table(chart, initial, tuple(seen), rows)


def _by_leaf_and_event(chart: Chart) -> dict[tuple[str, str], list[Transition]]:
    """Return the candidates for each leaf and event, those of the leaf before those of its state."""
    found: dict[tuple[str, str], list[Transition]] = {}
    inner_first = sorted(chart.transitions, key=lambda transition: not chart.is_leaf(transition.source))
    for transition in inner_first:
        for leaf in chart.leaves_of(transition.source):
            found.setdefault((leaf, transition.event), []).append(transition)
    return found


def _check_reachable(chart: Chart, seen: Iterable[Configuration], taken: set[Transition]) -> None:
    reached = {configuration.leaf for configuration in seen}
    for leaf in chart.leaves:
        if leaf.name not in reached:
            remedy = "add a transition that leads there, or remove it"
            raise ChartError(chart.name, f"leaf {leaf.name!r}", "cannot be reached", remedy)
    for transition in chart.transitions:
        if transition not in taken:
            raise ChartError(
                chart.name,
                f"state {transition.source!r}, event {transition.event!r}",
                "this transition is never taken: its guard never holds, or inner transitions hide it",
                "correct its guard, or remove it",
            )


def _check_can_leave(
    chart: Chart,
    seen: Iterable[Configuration],
    rows: Mapping[tuple[Configuration, str], Configuration],
) -> None:
    leaving = {here for (here, _), there in rows.items() if there.leaf != here.leaf}
    # A configuration can also be left after its flags have changed in place.
    while more := {here for (here, _), there in rows.items() if there in leaving} - leaving:
        leaving |= more
    for configuration in seen:
        if configuration not in leaving and not chart.leaf(configuration.leaf).final:
            flags = ", ".join(sorted(configuration.flags)) or "none"
            raise ChartError(
                chart.name,
                f"leaf {configuration.leaf!r}",
                f"is not final and cannot be left (flags: {flags})",
                "add a transition out of it, or make it final",
            )
