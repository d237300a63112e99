"""Specs of a tree: supervisors, children, restart types, shutdowns.

The names and their defaults are those of Erlang/OTP's ``supervisor``; additions to OTP are marked so, and are
off by default. A spec is checked when it is made: a value that cannot work raises
[`SpecError`][rayvisor.SpecError] naming the field and the value, before anything starts.

    >>> SupervisorSpec(intensity=-1)
    Traceback (most recent call last):
        ...
    rayvisor.errors.SpecError: intensity=-1: must be a whole number of restarts, 0 or more
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

from rayvisor._redaction import masked_repr
from rayvisor._validation import is_number, member, one_of, seconds, whole
from rayvisor.errors import SpecError
from rayvisor.specs.backoff import Backoff
from rayvisor.specs.backoff import longest as longest_delays
from rayvisor.status import ChildKind
from rayvisor.strategies import (
    OneForAll,
    OneForOne,
    RestartStrategy,
    RestForOne,
    SimpleOneForOne,
    by_name,
)

__all__ = [
    "AutoShutdown",
    "ChildSpec",
    "Instance",
    "Restart",
    "Shutdown",
    "StartSpec",
    "Strategy",
    "SupervisorSpec",
]


LEVELS_MAX = 100
"""The most levels of supervisors in a spec: whatever walks a tree recursively can walk so many."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Strategy(StrEnum):
    """Which children a supervisor restarts when one of them ends (OTP: ``strategy``)."""

    ONE_FOR_ONE = "one_for_one"
    """Only the child that ended."""
    ONE_FOR_ALL = "one_for_all"
    """All: the others are stopped in reverse order, then all are started in order."""
    REST_FOR_ONE = "rest_for_one"
    """The child that ended and those after it."""
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"
    """Only the child that ended; all are instances of one template, started with ``start_child``."""


_OTP: dict[Strategy, RestartStrategy] = {
    Strategy.ONE_FOR_ONE: OneForOne(),
    Strategy.ONE_FOR_ALL: OneForAll(),
    Strategy.REST_FOR_ONE: RestForOne(),
    Strategy.SIMPLE_ONE_FOR_ONE: SimpleOneForOne(),
}


class Restart(StrEnum):
    """When a child is restarted (OTP: ``restart``)."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Unless it ended normally or was stopped."""
    TEMPORARY = "temporary"
    """Never; its spec is deleted when it ends."""


class AutoShutdown(StrEnum):
    """Whether a supervisor ends on its own when significant children have ended (OTP 24)."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    ALL_SIGNIFICANT = "all_significant"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """How a child is stopped (OTP: ``shutdown``).

    Use ``Shutdown.BRUTAL_KILL``, ``Shutdown.INFINITY`` or ``Shutdown(seconds)``; where a spec takes a
    shutdown, a plain number of seconds does as well.

    Parameters
    ----------
    seconds
        How long a child may take after it was asked to end, before it is killed. ``0`` asks it and kills it
        immediately, ``math.inf`` waits forever, ``None`` kills it without asking.
    """

    seconds: float | None

    BRUTAL_KILL: ClassVar[Shutdown]
    INFINITY: ClassVar[Shutdown]

    @property
    def endless(self) -> bool:
        """Whether it waits forever."""
        return self.seconds is not None and math.isinf(self.seconds)

    def __str__(self) -> str:
        if self.seconds is None:
            return "brutal_kill"
        return "infinity" if self.endless else f"{self.seconds:g} s"


Shutdown.BRUTAL_KILL = Shutdown(None)
Shutdown.INFINITY = Shutdown(math.inf)


@runtime_checkable
class StartSpec(Protocol):
    """Protocol of a worker's start spec, which ``rayvisor.actor``, ``engine_pool`` and ``coroutine`` make.

    The decisions never read its fields: only the backend that runs the child does.
    """

    @property
    def kind(self) -> str:
        """Which backend carries it: ``"actor"``, ``"adopt"``, ``"engine"``, ``"coroutine"``.

        ``"supervisor"`` is a supervisor whose spec is made at each of its starts.
        """


class Instance(NamedTuple):
    """A child to be started under ``Strategy.SIMPLE_ONE_FOR_ONE``: other fields come from the template."""

    id: str
    """Name of the instance, unique under its supervisor."""
    start: StartSpec | None = None
    """Its start spec, if that differs between instances."""
    args: tuple[object, ...] = ()
    """Arguments that follow the template's own ``args`` (OTP: the extra arguments)."""

    def __repr__(self) -> str:
        return masked_repr(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child of a supervisor.

    Parameters
    ----------
    id
        Name of the child, unique under its supervisor. A ``/`` is not allowed: it separates the names of a
        path.
    start
        A worker's start spec, or a [`SupervisorSpec`][rayvisor.SupervisorSpec].
    restart
        When it is restarted.
    shutdown
        How it is stopped. Default: 5 seconds for a worker, no limit for a supervisor.
    significant
        Whether its end counts for the supervisor's ``auto_shutdown``.
    backoff
        Delays before restarts. None: no delay, as in OTP.
    start_timeout
        Seconds a start may take before it counts as failed.
    crash_loop_limit
        That many incarnations in a row that died before doing useful work end the child, whatever the
        intensity of its supervisor. None: no such rule. Beyond OTP.
    retry_first_start
        Whether a first start that failed for a temporary reason is retried like a restart. False, as in OTP:
        the supervisor's own start fails. A PERMANENT fault is never retried.
    standby
        Whether it starts as a spare: up and warm, but not routed to.
    recoveries
        How often within its supervisor's ``period`` an engine that reports a fault may recover in place by
        its own means before it is restarted instead; a recovery does not count as a restart. 0: never. Beyond
        OTP.
    recovery_timeout
        Seconds a recovery in place may take; choose less than the engine's own timeout.
    instructed_by
        Who instructs an engine that reports a fault to recover: ``"supervisor"``, or ``"operator"``, an
        outside orchestrator, which has ``recovery_timeout`` for it.
    gate
        An async function that is called with a [`Gate`][rayvisor.Gate] whenever an engine has come up, or is
        declared stale: the engine serves only once the function has succeeded, for example has brought its
        weights up to date. None: no gate. Beyond OTP, and for engines only.

    Raises
    ------
    SpecError
        When a value cannot work.
    """

    id: str
    start: StartSpec | SupervisorSpec
    restart: Restart = Restart.PERMANENT
    shutdown: Shutdown | float | None = None
    significant: bool = False
    backoff: Backoff | None = None
    start_timeout: float = 60.0
    crash_loop_limit: int | None = None
    retry_first_start: bool = False
    standby: bool = False
    recoveries: int = 0
    recovery_timeout: float = 10.0
    instructed_by: str = "supervisor"
    gate: Callable[[Any], Awaitable[object]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or "/" in self.id:  # type: ignore[redundant-expr]
            raise SpecError("id", self.id, "must be a name without '/', not empty", term="invalid_child_spec")
        if not self.id.isascii() and _SURROGATE.search(self.id):
            problem = "must be a valid text, without lone surrogates"
            raise SpecError("id", self.id, problem, term="invalid_child_spec")
        # Checked by hand: isinstance() of a protocol costs fifty times as much, and there may be a million
        # children.
        if not isinstance(self.start, SupervisorSpec) and not isinstance(
            getattr(self.start, "kind", None), str
        ):
            raise SpecError(
                "start",
                self.start,
                "must be what actor(), engine_pool() or coroutine() make, or a SupervisorSpec",
                term="invalid_mfa",
            )
        object.__setattr__(
            self, "restart", member("restart", Restart, self.restart, term="invalid_restart_type")
        )
        object.__setattr__(self, "shutdown", _shutdown(self.shutdown, supervisor=self.supervisor))
        if self.backoff is not None and not isinstance(self.backoff, Backoff):
            raise SpecError("backoff", self.backoff, "must be a Backoff, or None for OTP's immediate restart")
        seconds("start_timeout", self.start_timeout, least=0.001)
        if self.crash_loop_limit is not None:
            whole(
                "crash_loop_limit", self.crash_loop_limit, "incarnations", least=1, term="invalid_no_progress"
            )
        whole("recoveries", self.recoveries, "recoveries in place", least=0, term="invalid_recoveries")
        seconds("recovery_timeout", self.recovery_timeout, least=0.001)
        one_of("instructed_by", self.instructed_by, ("supervisor", "operator"))
        gate: object = self.gate
        if gate is not None and not (self._is_engine and callable(gate)):
            raise SpecError("gate", self.gate, "must be an async function, and is for engines only")

    @property
    def supervisor(self) -> bool:
        """Whether this child is a supervisor."""
        return isinstance(self.start, SupervisorSpec) or self.start.kind == ChildKind.SUPERVISOR

    @property
    def _is_engine(self) -> bool:
        return getattr(self.start, "kind", "") == ChildKind.ENGINE

    @property
    def ending(self) -> Shutdown:
        """``shutdown`` with its default filled in."""
        return cast("Shutdown", self.shutdown)  # __post_init__ made it one


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSpec:
    """A supervisor and its children.

    Parameters
    ----------
    strategy
        Which children are restarted together: one of OTP's, an object with a ``plan`` method (see
        [`RestartStrategy`][rayvisor.RestartStrategy]), or the name of a registered one.
    intensity
        How many restarts within ``period`` are tolerated; with one more the supervisor gives up. OTP's
        default: 1.
    period
        Length of that sliding window in seconds. OTP's default: 5.
    auto_shutdown
        Whether the end of significant children ends the supervisor.
    children
        The children in start order; they are stopped in the reverse order. Under ``SIMPLE_ONE_FOR_ONE`` the
        one template, of which no instance is started at first.
    max_concurrent_starts
        How many children are started at the same time when the supervisor starts. 1, as in OTP: each is up
        before the next one starts.
    recover_as_group
        Whether its children recover in place only together, as the ranks of a group do. Beyond OTP.

    Raises
    ------
    SpecError
        When a value cannot work: also for a duplicate id, and for a backoff that would keep failures so
        far apart that ``intensity`` could never be exceeded within ``period``.

    Examples
    --------
    >>> spec = SupervisorSpec(strategy=Strategy.ONE_FOR_ONE, intensity=3, period=900.0)
    >>> spec.intensity, spec.period
    (3, 900.0)
    """

    strategy: Strategy | RestartStrategy | str = Strategy.ONE_FOR_ONE
    intensity: int = 1
    period: float = 5.0
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER
    children: Sequence[ChildSpec] = field(default=())
    max_concurrent_starts: int = 1
    recover_as_group: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        whole("intensity", self.intensity, "restarts", least=0, term="invalid_intensity")
        seconds("period", self.period, least=0.0, term="invalid_period", exclusive=True)
        object.__setattr__(self, "auto_shutdown", member("auto_shutdown", AutoShutdown, self.auto_shutdown))
        whole(
            "max_concurrent_starts",
            self.max_concurrent_starts,
            "concurrent starts",
            least=1,
            term="invalid_start_limit",
        )
        object.__setattr__(self, "children", tuple(self.children))
        seen: set[str] = set()
        for index, child in enumerate(self.children):
            if not isinstance(child, ChildSpec):
                raise SpecError(
                    f"children[{index}]",
                    child,
                    "must be a ChildSpec, as rayvisor.actor() and similar functions make one",
                )
            if child.id in seen:
                raise SpecError(
                    f"children[{index}].id",
                    child.id,
                    "is used twice; ids are unique under a supervisor",
                    term="duplicate_child_name",
                )
            seen.add(child.id)
            self.check(child)
        self._check_depth()
        if self.strategy is Strategy.SIMPLE_ONE_FOR_ONE and len(self.children) != 1:
            raise SpecError(
                "children",
                self.children,
                "must be one template under strategy='simple_one_for_one'; start_child makes its instances",
                term="bad_start_spec",
            )

    def _check_depth(self) -> None:
        level: list[SupervisorSpec] = [self]
        for _ in range(LEVELS_MAX):
            starts = (child.start for each in level for child in each.children)
            level = [start for start in starts if isinstance(start, SupervisorSpec)]
            if not level:
                return
        problem = f"must have at most {LEVELS_MAX} levels of supervisors"
        raise SpecError("children", f"{LEVELS_MAX + 1} levels", problem)

    @property
    def planner(self) -> RestartStrategy:
        """The strategy that plans restarts."""
        strategy = self.strategy
        return _OTP[strategy] if isinstance(strategy, Strategy) else cast("RestartStrategy", strategy)

    @property
    def strategy_name(self) -> str:
        """Name of the strategy."""
        strategy = self.strategy
        return strategy.value if isinstance(strategy, Strategy) else type(strategy).__name__

    @property
    def template(self) -> ChildSpec | None:
        """The template of ``start_child`` under ``SIMPLE_ONE_FOR_ONE``; None otherwise."""
        return self.children[0] if self.strategy is Strategy.SIMPLE_ONE_FOR_ONE else None

    def check(self, child: ChildSpec) -> None:
        """Raise SpecError if ``child`` cannot work under this supervisor's flags."""
        if child.significant and (
            self.auto_shutdown is AutoShutdown.NEVER or child.restart is Restart.PERMANENT
        ):
            raise SpecError(
                f"children[{child.id!r}].significant",
                child.significant,
                f"cannot go with auto_shutdown={self.auto_shutdown.value!r} and "
                f"restart={child.restart.value!r}: a significant child needs an auto_shutdown, and a restart "
                "type that lets it end",
                term="bad_combination",
            )
        backoff = child.backoff
        if backoff is None or backoff.maximum == 0:
            return
        # intensity + 1 restarts must fit into one window, or giving up could never happen.
        longest = longest_delays(backoff, 1, self.intensity) + self.intensity * child.start_timeout
        if longest > self.period:
            raise SpecError(
                f"children[{child.id!r}].backoff",
                backoff,
                f"could never trip the window: {self.intensity} failed restarts may take {longest:g} s "
                f"(delays up to {backoff.maximum:g} s and start_timeout={child.start_timeout:g} s each), "
                f"longer than period={self.period:g}; lengthen period to at least {math.ceil(longest)}, or "
                "lower intensity, backoff.maximum or start_timeout",
            )


def _strategy(value: object) -> Strategy | RestartStrategy:
    if isinstance(value, str):
        own = Strategy.__members__.get(value.upper()) if value == value.lower() else None
        return by_name(value) if own is None else own
    if isinstance(value, type) or not isinstance(value, RestartStrategy):
        raise SpecError(
            "strategy",
            value,
            "must be a Strategy, the name of a registered one, or an object (not a class) with a method "
            "plan(failure, siblings)",
            term="invalid_strategy",
        )
    return value


def _shutdown(value: object, *, supervisor: bool) -> Shutdown:
    if value is None:
        return Shutdown.INFINITY if supervisor else Shutdown(5.0)
    if isinstance(value, Shutdown):
        time = value.seconds
        if time is None:
            return value
    elif is_number(value):
        time = float(value)
    else:
        time = math.nan
    if math.isnan(time) or time < 0:
        raise SpecError(
            "shutdown",
            value,
            "must be seconds (0 or more), Shutdown.INFINITY or Shutdown.BRUTAL_KILL",
            term="invalid_shutdown",
        )
    return Shutdown(time)
