"""Restart strategies: which children are stopped and started, in which order, when one of them fails.

A strategy is any object with a ``plan`` method. It takes the failure and a view of the siblings, and returns
steps. The supervisor carries them out one after the other, in order, and asks for another plan when a step
fails. OTP's four strategies are written here with the same steps that are available to every other one:

>>> class PairFirst:
...     '''Restart a worker together with the one beside it.'''
...
...     def plan(self, failure, siblings):
...         pair = [failure.child, f"{failure.child}-mirror"]
...         return [stop(pair), start(pair)]
>>> isinstance(PairFirst(), RestartStrategy)
True

Give it as ``SupervisorSpec(strategy=PairFirst())``, or register it as an entry point in the group
``rayvisor.strategies`` and give its name. All starts of a plan count as one restart within
``intensity`` and ``period``, and backoff delays come before its first start.

A strategy must be quick and must not block: it is called within the supervisor's loop. If it raises, or
returns a plan that cannot be carried out, that is recorded with a [`StrategyError`][rayvisor.StrategyError],
and only the failed child is restarted.
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
"""The group of entry points in which strategies are registered."""

_IDS_LIMIT = 2_000_000

# --- steps --------------------------------------------------------------------------------------


class Stop(NamedTuple):
    """Stop children, each by its own ``shutdown``, one at a time, the last one first."""

    ids: tuple[str, ...]


class Start(NamedTuple):
    """Start children in this order; the next step follows when all are up."""

    ids: tuple[str, ...]
    concurrency: int | None = None


class WaitServing(NamedTuple):
    """Wait until a child serves: it is up, and not paused."""

    id: str
    timeout: float


class InPlace(NamedTuple):
    """Let the failed child, which still runs, recover by its own means."""

    action: str
    timeout: float


class Escalate(NamedTuple):
    """Give up: the supervisor ends, and its own supervisor decides what follows."""

    reason: str


Step = Stop | Start | WaitServing | InPlace | Escalate
"""One step of a plan."""


def stop(ids: str | Iterable[str]) -> Stop:
    """Make the step that stops children, one at a time, in the reverse of this order.

    Children that do not run are skipped. The spec of a temporary child is deleted when it has stopped.

    Parameters
    ----------
    ids
        Their ids, in start order; or one id.
    """
    return Stop(_ids(ids))


def start(ids: str | Iterable[str], *, concurrency: int | None = None) -> Start:
    """Make the step that starts children in this order.

    The step waits first for children that are still being stopped. Children that run are skipped. If one
    cannot be started, no further one is, and the strategy is asked for another plan, with that child as the
    failed one.

    Parameters
    ----------
    ids
        Their ids; or one id.
    concurrency
        How many are started at the same time; None: the supervisor's ``max_concurrent_starts``.
    """
    if concurrency is not None:
        whole("concurrency", concurrency, "concurrent starts")
    return Start(_ids(ids), concurrency)


def wait_serving(id: str, *, timeout: float = 600.0) -> WaitServing:
    """Make the step that waits until a child serves; it fails if the child ends, or does not serve in time.

    Parameters
    ----------
    id
        Its id.
    timeout
        Seconds to wait.
    """
    return WaitServing(id, _seconds(timeout))


def in_place(action: str, *, timeout: float = 30.0) -> InPlace:
    """Make the step that lets the failed child recover by its own means; it fails if the child does not run.

    Parameters
    ----------
    action
        What the child does: for an actor the name of a method.
    timeout
        Seconds the action may take.
    """
    return InPlace(action, _seconds(timeout))


def escalate(reason: str) -> Escalate:
    """Make the step by which the supervisor gives up.

    Parameters
    ----------
    reason
        Reason for the record, and for [`SupervisorGaveUpError`][rayvisor.SupervisorGaveUpError].
    """
    return Escalate(reason)


# --- arguments of a strategy ---------------------------------------------------------------------------


class Failure(NamedTuple):
    """The failure that a strategy plans for."""

    child: str
    """Id of the child that failed."""
    exit: Exit
    """How it ended."""
    step: Step | None = None
    """The step of the previous plan that failed because of it; None: the child failed on its own."""
    restarts: int = 0
    """How many restarts there were within ``period`` so far."""
    intensity: int = 0
    """How many restarts are tolerated within ``period``."""

    @property
    def fault(self) -> Fault | None:
        """The fault behind it; None for an end that is no fault."""
        return self.exit.fault


class Sibling(NamedTuple):
    """State of one child at the moment of the failure."""

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
        """Whether the child runs."""
        return is_up(self.state)

    @property
    def serving(self) -> bool:
        """Whether the child gets work."""
        return self.leaf == "SERVING"


class Siblings(Mapping[str, Sibling]):
    """All children of the supervisor by id, in start order, the failed one included.

    A view of the current moment: do not keep it.
    """

    __slots__ = ()

    def from_(self, id: str) -> list[str]:
        """Return the ids of a child and of those after it in start order."""
        ids = list(self)
        return ids[ids.index(id) :]

    def others(self, id: str) -> list[Sibling]:
        """Return all children but one."""
        return [self[each] for each in self if each != id]


@runtime_checkable
class RestartStrategy(Protocol):
    """Protocol of a restart strategy: implement ``plan``, nothing more."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Return the steps to take.

        Called when a child is to be restarted by its restart type, and again when a step fails. Without steps
        the failed child stays down, and the others continue.

        Parameters
        ----------
        failure
            Which child failed, how, and which step of the previous plan failed because of it.
        siblings
            All children, in start order.
        """
        ...


# --- OTP's strategies -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OneForOne:
    """Restart only the child that ended."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:  # noqa: ARG002 - part of the protocol
        """Start the failed child."""
        return (Start((failure.child,)),)


@dataclass(frozen=True, slots=True)
class SimpleOneForOne:
    """As ``OneForOne``; the supervisor itself makes all children from one template."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:  # noqa: ARG002 - part of the protocol
        """Start the failed child."""
        return (Start((failure.child,)),)


@dataclass(frozen=True, slots=True)
class OneForAll:
    """Restart all children."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:  # noqa: ARG002 - part of the protocol
        """Stop all children in reverse order, start all in order."""
        return (stop(siblings), start(siblings))


@dataclass(frozen=True, slots=True)
class RestForOne:
    """Restart the child that ended, and those after it."""

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Stop these children in reverse order, start them in order."""
        rest = siblings.from_(failure.child)
        return (stop(rest), start(rest))


# --- beyond OTP ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quorum:
    """Restart only the failed child while ``k`` others serve, and all children below that.

    While the quorum holds no other child is affected.

    Parameters
    ----------
    k
        How many other children must serve for the group to continue.
    replace
        Whether the failed child is restarted while the quorum holds. False: it stays down until the whole
        group is restarted.

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
        """Count the children that serve, and restart one child or all."""
        if sum(sibling.serving for sibling in siblings.others(failure.child)) >= self.k:
            return (start(failure.child),) if self.replace else ()
        return (stop(siblings), start(siblings))


@dataclass(frozen=True, slots=True)
class Rolling:
    """Restart the whole group one child at a time, each once the previous one serves again.

    The failed child comes first, the others follow in start order. Children that are down stay down.

    Parameters
    ----------
    timeout
        Seconds each child may take until it serves.
    """

    timeout: float = 600.0

    def plan(self, failure: Failure, siblings: Siblings) -> Iterable[Step]:
        """Stop, start and wait, for one child after the other."""
        steps: list[Step] = [start(failure.child), wait_serving(failure.child, timeout=self.timeout)]
        for sibling in siblings.others(failure.child):
            if sibling.up:
                each = sibling.id
                steps += [stop(each), start(each), wait_serving(each, timeout=self.timeout)]
        return steps


# --- by name -----------------------------------------------------------------------------------------------


def by_name(name: str, **arguments: Any) -> RestartStrategy:
    """Make a strategy from an entry point of the group ``rayvisor.strategies``.

    Parameters
    ----------
    name
        Name of the entry point: ``"quorum"``, ``"rolling"``, or one that another package registered.
    arguments
        Arguments for the entry point, if it is a class or a function.

    Raises
    ------
    SpecError
        No entry point has that name, it cannot be loaded or called, or the object has no ``plan`` method.

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
