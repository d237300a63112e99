"""Restart strategies: which children are stopped and started, in which order, when one of them fails.

A strategy is any object with a ``plan`` method: it is given the failure and a view of the siblings, and
returns steps. The supervisor carries them out one after the other, in order, and asks again when a step
fails. OTP's four are written here with the same few words that are open to everyone:

>>> class PairFirst:
...     '''Restart a worker together with the one beside it.'''
...
...     def plan(self, failure, siblings):
...         pair = [failure.child, f"{failure.child}-mirror"]
...         return [stop(pair), start(pair)]
>>> isinstance(PairFirst(), RestartStrategy)
True

Give it as ``SupervisorSpec(strategy=PairFirst())``, or register it as an entry point in the group
``rayvisor.strategies`` and give its name. Whatever a plan starts counts as one restart within
``intensity`` and ``period``, and backoff delays come before its first start.

A strategy must be quick and must not block: it is called within the supervisor's loop. One that raises, or
returns a plan that cannot be carried out, is recorded with a [`StrategyError`][rayvisor.StrategyError],
and the failed child is restarted by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rayvisor._validation import seconds, whole
from rayvisor.errors import SpecError
from rayvisor.faults import Exit, Fault
from rayvisor.status import is_up

__all__ = [
    "Escalate",
    "Failure",
    "InPlace",
    "OneForAll",
    "OneForOne",
    "Quorum",
    "RestForOne",
    "RestartStrategy",
    "Rolling",
    "Sibling",
    "Siblings",
    "SimpleOneForOne",
    "Start",
    "Step",
    "Stop",
    "WaitServing",
    "by_name",
    "escalate",
    "in_place",
    "start",
    "stop",
    "wait_serving",
]

GROUP = "rayvisor.strategies"
"""The entry points in which strategies are registered."""

_IDS_LIMIT = 2_000_000

# --- steps --------------------------------------------------------------------------------------


class Stop(NamedTuple):
    """End children by their shutdown, one at a time, the last first."""

    ids: tuple[str, ...]


class Start(NamedTuple):
    """Start children in this order; the next step comes when all are up."""

    ids: tuple[str, ...]
    concurrency: int | None = None


class WaitServing(NamedTuple):
    """Wait until a child serves: up, and not paused."""

    id: str
    timeout: float


class InPlace(NamedTuple):
    """Have the failed child, which still runs, do something about it itself."""

    action: str
    timeout: float


class Escalate(NamedTuple):
    """Give up: the supervisor ends, and its own supervisor decides."""

    reason: str


Step = Stop | Start | WaitServing | InPlace | Escalate
"""What a plan is made of."""


def stop(ids: str | Iterable[str]) -> Stop:
    """Make the step that ends children, one at a time, in the reverse of this order.

    Those that do not run are passed over. A temporary child is forgotten when it was stopped.

    Parameters
    ----------
    ids
        Their ids, in start order; or one id.
    """
    return Stop(_ids(ids))


def start(ids: str | Iterable[str], *, concurrency: int | None = None) -> Start:
    """Make the step that starts children in this order.

    It waits first for those that are still being ended. Those that run are passed over. If one cannot be
    started no further one is, and the strategy is asked again about that one.

    Parameters
    ----------
    ids
        Their ids; or one id.
    concurrency
        How many come up side by side; None: the supervisor's ``max_concurrent_starts``.
    """
    if concurrency is not None:
        whole("concurrency", concurrency, "starts side by side")
    return Start(_ids(ids), concurrency)


def wait_serving(id: str, *, timeout: float = 600.0) -> WaitServing:  # noqa: A002 - OTP's word
    """Make the step that waits until a child serves; it fails when the child ends, or is not in time.

    Parameters
    ----------
    id
        Its id.
    timeout
        Seconds.
    """
    return WaitServing(id, _seconds(timeout))


def in_place(action: str, *, timeout: float = 30.0) -> InPlace:
    """Make the step that has the failed child recover by its own means; it fails if it does not run.

    Parameters
    ----------
    action
        What it is to do: for an actor the name of a method.
    timeout
        Seconds it may take.
    """
    return InPlace(action, _seconds(timeout))


def escalate(reason: str) -> Escalate:
    """Make the step that gives the supervisor up.

    Parameters
    ----------
    reason
        Said in the record, and in [`SupervisorGaveUpError`][rayvisor.SupervisorGaveUpError].
    """
    return Escalate(reason)


# --- what a strategy is given -------------------------------------------------------------------------


class Failure(NamedTuple):
    """What a strategy is asked about."""

    child: str
    """Id of the child that failed."""
    exit: Exit
    """How it ended."""
    step: Step | None = None
    """The step of the plan before that failed over it; None: it failed by itself."""
    restarts: int = 0
    """How many restarts there were within ``period`` so far."""
    intensity: int = 0
    """How many are tolerated."""

    @property
    def fault(self) -> Fault | None:
        """The fault record behind it; None for an end that is no fault."""
        return self.exit.fault


class Sibling(NamedTuple):
    """A child as a strategy sees it."""

    id: str
    state: str
    """``ALIVE``, ``PAUSED``, ``RESTARTING`` or ``DEAD``."""
    leaf: str
    """``SERVING``, ``STALE``, ``STARTING``, ...: see the charts."""
    incarnation: int
    restart: str
    """Its restart type."""
    significant: bool

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return is_up(self.state)

    @property
    def serving(self) -> bool:
        """Whether it gets work."""
        return self.leaf == "SERVING"


class Siblings(Mapping[str, Sibling]):
    """All children of the supervisor by id, in start order, the failed one among them.

    A view of this moment: do not keep it.
    """

    __slots__ = ()

    def from_(self, id: str) -> list[str]:  # noqa: A002 - OTP's word
        """Ids of a child and those that were started after it."""
        ids = list(self)
        return ids[ids.index(id) :]

    def others(self, id: str) -> list[Sibling]:  # noqa: A002 - OTP's word
        """All but one."""
        return [self[each] for each in self if each != id]


@runtime_checkable
class RestartStrategy(Protocol):
    """Decides what is restarted when a child fails. Implement ``plan``, nothing more."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Return the steps to take.

        Called when a child is to be restarted by its restart type, and again when a step fails. No steps:
        the failed child stays down, and the others go on.

        Parameters
        ----------
        failure
            Which child failed, how, and which step of the plan before failed over it.
        siblings
            All children, in start order.
        """
        ...


# --- OTP's strategies -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OneForOne:
    """Only the one that ended is restarted."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:  # noqa: ARG002 - the protocol's
        """Start it again."""
        return (Start((failure.child,)),)


@dataclass(frozen=True, slots=True)
class SimpleOneForOne:
    """As ``OneForOne``; that all children are instances of one template is the supervisor's affair."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:  # noqa: ARG002 - the protocol's
        """Start it again."""
        return (Start((failure.child,)),)


@dataclass(frozen=True, slots=True)
class OneForAll:
    """All are restarted."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:  # noqa: ARG002 - the protocol's
        """Stop all in reverse order, start all in order."""
        return (stop(siblings), start(siblings))


@dataclass(frozen=True, slots=True)
class RestForOne:
    """The one that ended is restarted with those after it."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Stop them in reverse order, start them in order."""
        rest = siblings.from_(failure.child)
        return (stop(rest), start(rest))


# --- two more --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quorum:
    """Go on while ``k`` others serve; below that restart all.

    While the quorum stands the one that failed comes back by itself, and nobody else is touched.

    Parameters
    ----------
    k
        How many must serve for the group to go on.
    replace
        Whether the failed one is started again while the quorum stands. False: it stays down until the
        whole group is restarted.

    Examples
    --------
    >>> Quorum(2)
    Quorum(k=2, replace=True)
    """

    k: int = 1
    replace: bool = True

    def __post_init__(self) -> None:
        whole("quorum.k", self.k, "children")

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Count who serves."""
        if sum(sibling.serving for sibling in siblings.others(failure.child)) >= self.k:
            return (start(failure.child),) if self.replace else ()
        return (stop(siblings), start(siblings))


@dataclass(frozen=True, slots=True)
class Rolling:
    """Restart the whole group one child at a time, each once the one before it serves again.

    The one that failed comes first, the others follow in start order. Children that are down are left so.

    Parameters
    ----------
    timeout
        Seconds each may take until it serves.
    """

    timeout: float = 600.0

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Stop, start, wait: one after the other."""
        steps: list[Step] = [start(failure.child), wait_serving(failure.child, timeout=self.timeout)]
        for sibling in siblings.others(failure.child):
            if sibling.up:
                each = sibling.id
                steps += [stop(each), start(each), wait_serving(each, timeout=self.timeout)]
        return steps


# --- by name -----------------------------------------------------------------------------------------------


def by_name(name: str, **arguments: Any) -> RestartStrategy:
    """Find a strategy among the entry points of the group ``rayvisor.strategies``.

    Parameters
    ----------
    name
        Name of the entry point: ``"quorum"``, ``"rolling"``, or one that another package registered.
    arguments
        What it is made with, where the entry point is a class or a function.

    Raises
    ------
    SpecError
        There is none of that name, it cannot be loaded or made, or what it names has no ``plan`` method.

    Examples
    --------
    >>> by_name("quorum", k=3)
    Quorum(k=3, replace=True)
    """
    from importlib.metadata import entry_points

    found = entry_points(group=GROUP)
    if name not in found.names:
        own = ("one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one")
        known = ", ".join([*own, *sorted(found.names)])
        raise SpecError(
            "strategy",
            name,
            f"is neither one of OTP's nor registered in {GROUP!r}; there are: {known}",
            term="invalid_strategy",
        )
    try:
        made = found[name].load()
        if callable(made):
            made = made(**arguments)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError("strategy", name, f"cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, RestartStrategy):
        raise SpecError("strategy", name, f"names {made!r}, which has no method plan(failure, siblings)")
    return made


def _ids(ids: str | Iterable[str]) -> tuple[str, ...]:
    found = (ids,) if isinstance(ids, str) else tuple(islice(ids, _IDS_LIMIT + 1))
    if len(found) > _IDS_LIMIT:
        raise SpecError("ids", "...", f"has no end: more than {_IDS_LIMIT} ids in one step")
    return found


def _seconds(timeout: float) -> float:
    seconds("timeout", timeout, exclusive=True, below=math.inf)
    return float(timeout)
