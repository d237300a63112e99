"""Charts as data: states, leaves, flags, choices and transitions, validated when they are created.

A chart has two levels. A *state* contains *leaves*, and an object that follows the chart is always in
exactly one leaf. Beside the leaf it carries a set of *flags*. A *choice* is a pseudo-state that is left
immediately, for the leaf of the first of its flags that is set.

    >>> door = Chart(
    ...     name="door",
    ...     states=(
    ...         State("OPEN", (Leaf("AJAR"), Leaf("WIDE"))),
    ...         State("SHUT", (Leaf("CLOSED"), Leaf("LOCKED"))),
    ...     ),
    ...     initial="CLOSED",
    ...     flags=("BOLT",),
    ...     choices=(Choice("LATCH", (Branch("BOLT", "LOCKED"),), otherwise="CLOSED"),),
    ...     transitions=(
    ...         Transition("OPEN", "shut", "LATCH"),
    ...         Transition("OPEN", "bolt", None, sets=("BOLT",)),
    ...         Transition("CLOSED", "push", "AJAR"),
    ...         Transition("AJAR", "push", "WIDE"),
    ...         Transition("LOCKED", "unlock", "CLOSED", clears=("BOLT",)),
    ...     ),
    ... )
    >>> door.leaf("LOCKED").name
    'LOCKED'

Creating a chart checks everything that its text alone shows: every name is known, every name is defined
once, and no two transitions are ever enabled at the same time. Checks that have to walk through the chart
(unreachable leaves, dead ends) are made by [`compile_chart`][statecharts.compile_chart].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from statecharts._registry import NOTEBOOK_VIEWS
from statecharts.errors import ChartError

__all__ = ["Branch", "Chart", "Choice", "Leaf", "State", "Transition", "from_each"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A state without substates.

    Parameters
    ----------
    name
        Unique in the chart.
    doc
        Its meaning in one line, for readers of the rendered chart.
    final
        Whether an object may stay here forever. A final leaf may still have transitions out of it.
    """

    name: str
    doc: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """A state of the upper level.

    Parameters
    ----------
    name
        Unique in the chart; it may equal the name of a leaf only if that is its only leaf.
    leaves
        Its substates. A state without substates has one leaf of the same name, see
        [`State.simple`][statecharts.State.simple].
    doc
        Its meaning in one line.
    """

    name: str
    leaves: tuple[Leaf, ...]
    doc: str = ""

    @classmethod
    def simple(cls, name: str, doc: str = "", *, final: bool = False) -> State:
        """Create a state that is its own and only leaf."""
        return cls(name, (Leaf(name, doc, final),), doc)

    @property
    def is_simple(self) -> bool:
        """Whether this state is its own and only leaf."""
        return len(self.leaves) == 1 and self.leaves[0].name == self.name


@dataclass(frozen=True, slots=True)
class Branch:
    """An exit of a choice, taken to ``target`` if ``flag`` is set and no earlier branch was taken."""

    flag: str
    target: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A pseudo-state, left immediately by the first branch whose flag is set, else to ``otherwise``."""

    name: str
    branches: tuple[Branch, ...]
    otherwise: str
    doc: str = ""

    def resolve(self, flags: frozenset[str]) -> str:
        """Return the name of the leaf that this choice leads to under ``flags``."""
        return next((branch.target for branch in self.branches if branch.flag in flags), self.otherwise)


@dataclass(frozen=True, slots=True)
class Transition:
    """The effect of an event in one leaf, or in every leaf of a state.

    Parameters
    ----------
    source
        A leaf or a state. The transition of a state applies in each of its leaves in which no transition
        of the leaf itself is enabled for the event.
    event
        Name of the event.
    target
        A leaf, a choice (resolved after the flags have changed), or None to stay and change flags only.
    when, unless
        The guard. It passes if all flags of ``when`` and none of ``unless`` are set.
    sets, clears
        The flags to set and to clear.
    doc
        The reason in one line.
    """

    source: str
    event: str
    target: str | None
    when: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    clears: tuple[str, ...] = ()
    doc: str = ""

    def enabled(self, flags: frozenset[str]) -> bool:
        """Return whether the guard passes under ``flags``."""
        return flags.issuperset(self.when) and flags.isdisjoint(self.unless)

    def apply(self, flags: frozenset[str]) -> frozenset[str]:
        """Return the flags after the transition."""
        return flags.difference(self.clears).union(self.sets)

    def __str__(self) -> str:
        return f"{self.source} + {self.event} -> {self.target or 'stay'}"


def from_each(
    sources: Iterable[str],
    event: str,
    target: str | None,
    *,
    when: tuple[str, ...] = (),
    unless: tuple[str, ...] = (),
    sets: tuple[str, ...] = (),
    clears: tuple[str, ...] = (),
    doc: str = "",
) -> tuple[Transition, ...]:
    """Create the same transition from each of ``sources``."""
    return tuple(Transition(source, event, target, when, unless, sets, clears, doc) for source in sources)


@dataclass(frozen=True, slots=True)
class Chart:
    """A statechart as data. A notebook displays it as a picture.

    Parameters
    ----------
    name
        The name used in error messages and renderings.
    states
        The upper level, in display order.
    initial
        The leaf of a new object. It starts with no flag set.
    transitions
        The effect of each event in each state. An event without an enabled transition is not accepted there.
    flags
        Names that may be set beside the leaf.
    choices
        Pseudo-states that transitions may lead to instead of a leaf.
    doc
        A description, in one line, of the objects that follow this chart.

    Raises
    ------
    ChartError
        If a name is unknown or defined twice, or two transitions could be enabled at the same time.
    """

    name: str
    states: tuple[State, ...]
    initial: str
    transitions: tuple[Transition, ...]
    flags: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    doc: str = ""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_targets()
        for transition in self.transitions:
            self._check_transition(transition)
        self._check_deterministic()

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """All leaves, in the order of their states."""
        return tuple(leaf for state in self.states for leaf in state.leaves)

    @property
    def events(self) -> tuple[str, ...]:
        """All events, in the order in which the transitions first name them."""
        return tuple(dict.fromkeys(transition.event for transition in self.transitions))

    def leaf(self, name: str) -> Leaf:
        """Return a leaf by its name."""
        found = next((leaf for leaf in self.leaves if leaf.name == name), None)
        if found is None:
            known = ", ".join(leaf.name for leaf in self.leaves)
            raise ChartError(self.name, f"leaf {name!r}", "is not in the chart", f"its leaves are {known}")
        return found

    def state_of(self, leaf: str) -> State:
        """Return the state that contains a leaf."""
        wanted = self.leaf(leaf)
        return next(state for state in self.states if wanted in state.leaves)

    def leaves_of(self, source: str) -> tuple[str, ...]:
        """Return the names of the leaves that a transition's source stands for."""
        for state in self.states:
            if state.name == source:
                return tuple(leaf.name for leaf in state.leaves)
        return (self.leaf(source).name,)

    def is_leaf(self, name: str) -> bool:
        """Return whether ``name`` is the name of a leaf."""
        return any(leaf.name == name for leaf in self.leaves)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return NOTEBOOK_VIEWS["chart"](self)

    def _repr_svg_(self) -> str:
        return self._repr_mimebundle_()["image/svg+xml"]

    # Checks. Each error shows the invalid part as it is written in the chart.

    def _check_names(self) -> None:
        if not self.name:
            raise ChartError(self.name, "name", "is empty", "name the chart")
        places = [leaf.name for leaf in self.leaves]
        places += [state.name for state in self.states if not state.is_simple]
        places += [choice.name for choice in self.choices]
        for kind, names in (("state, leaf or choice", places), ("flag", list(self.flags))):
            for name, times in Counter(names).items():
                if not name:
                    raise ChartError(self.name, kind, "has an empty name", "name it")
                if times > 1:
                    raise ChartError(
                        self.name,
                        f"{kind} {name!r}",
                        f"is defined {times} times",
                        "give each a different name",
                    )
        for state in self.states:
            if not state.leaves:
                raise ChartError(
                    self.name, f"state {state.name!r}", "has no leaf", "give it one, or make it State.simple"
                )

    def _check_targets(self) -> None:
        self._check_leaf(self.initial, "initial")
        for choice in self.choices:
            where = f"choice {choice.name!r}"
            self._check_flags(where, tuple(branch.flag for branch in choice.branches))
            for target in (*(branch.target for branch in choice.branches), choice.otherwise):
                self._check_leaf(target, where)
            for flag, times in Counter(branch.flag for branch in choice.branches).items():
                if times > 1:
                    problem = f"asks for flag {flag!r} {times} times, and only the first can be taken"
                    raise ChartError(self.name, where, problem, "remove the others")

    def _check_transition(self, transition: Transition) -> None:
        where = f"transition {str(transition)!r}"
        if not transition.event:
            raise ChartError(self.name, where, "has no event", "name the event")
        if not self.is_leaf(transition.source) and all(
            state.name != transition.source for state in self.states
        ):
            self._unknown(where, "source", transition.source, "name a state or a leaf of it")
        choices = {choice.name for choice in self.choices}
        if transition.target is not None and transition.target not in choices:
            self._check_leaf(transition.target, where)
        self._check_flags(where, transition.when + transition.unless + transition.sets + transition.clears)
        for one, other, names in (
            ("when", "unless", set(transition.when) & set(transition.unless)),
            ("sets", "clears", set(transition.sets) & set(transition.clears)),
        ):
            if names:
                problem = f"names flag {min(names)!r} both in {one!r} and in {other!r}"
                raise ChartError(self.name, where, problem, "leave it in one of them")

    def _check_leaf(self, name: str, where: str) -> None:
        if not self.is_leaf(name):
            known = [leaf.name for leaf in self.leaves] + [choice.name for choice in self.choices]
            self._unknown(where, "leaf", name, f"name one of {', '.join(known)}")

    def _check_flags(self, where: str, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.flags:
                known = ", ".join(self.flags) or "none"
                self._unknown(where, "flag", name, f"the chart's flags are: {known}")

    def _unknown(self, where: str, kind: str, name: str, remedy: str) -> None:
        raise ChartError(self.name, where, f"unknown {kind} {name!r}", remedy)

    def _check_deterministic(self) -> None:
        # Two guards can both pass exactly if no flag is required by one and excluded by the other. Whether
        # such flags are reachable does not matter: a chart that is correct only because of restrictions
        # elsewhere in it breaks with the next edit.
        for one, other in combinations(self.transitions, 2):
            if (one.source, one.event) != (other.source, other.event):
                continue
            if set(one.when) & set(other.unless) or set(other.when) & set(one.unless):
                continue
            flags = ", ".join(sorted({*one.when, *other.when})) or "none"
            raise ChartError(
                self.name,
                f"state {one.source!r}, event {one.event!r}",
                f"two transitions are enabled at the same time (flags: {flags}): to {one.target or 'stay'} "
                f"and to {other.target or 'stay'}",
                "guard them with 'when' and 'unless' so that at most one is enabled",
            )
