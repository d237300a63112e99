"""The records of a supervisor: frozen, in the order in which things happened.

`Supervisor.watch()` yields them. ``at`` is in seconds on the clock of ``time.monotonic()``.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayvisor.faults import Fault

__all__ = [
    "CleanupUnverified",
    "DecisionMade",
    "EventLoopBlocked",
    "FaultSeen",
    "HookFailed",
    "LateStart",
    "Record",
    "RecordsMissed",
    "RecoveryFailed",
    "StartProgressed",
    "StateChanged",
    "StrategyFailed",
    "SupervisorStateChanged",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """A child moved from one configuration to another."""

    at: float
    child: str
    incarnation: int
    event: str
    before: str
    """State and leaf, for example ``"ALIVE.SERVING"``."""
    after: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSeen:
    """An incarnation ended, or a start failed, with a fault; or an actor is SUSPECT (class TRANSIENT)."""

    at: float
    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionMade:
    """The supervisor's decision about the end of an incarnation."""

    at: float
    child: str
    incarnation: int
    decision: str
    """``restart``, ``observe``, ``retry_later``, ``in_place``, ``rest``, ``forget``, ``give_up``, ``fail``"""
    why: str
    restarts: int
    """Restarts within the window, this one included."""
    intensity: int
    delay: float
    """Seconds until the child is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFailed:
    """An incarnation has not recovered in place, or has not confirmed that in time; it is restarted."""

    at: float
    child: str
    incarnation: int
    action: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProgressed:
    """A start has made progress."""

    at: float
    child: str
    incarnation: int
    phase: str
    detail: str
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LateStart:
    """An incarnation came up after its start had timed out, and was ended immediately."""

    at: float
    child: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupUnverified:
    """It could not be proven that nothing is left of an incarnation; the next start proceeds anyway."""

    at: float
    child: str
    incarnation: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStateChanged:
    """A supervisor is ``starting``, ``running``, ``stopping`` or has ``ended``."""

    at: float
    path: str
    state: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFailed:
    """A user's hook raised; the child continued without it."""

    at: float
    child: str
    hook: str
    place: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyFailed:
    """A restart strategy raised, or its plan cannot be carried out; the child is restarted alone."""

    at: float
    child: str
    strategy: str
    problem: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLoopBlocked:
    """The supervisor's event loop was blocked for some seconds: something on it did not return."""

    at: float
    seconds: float
    activity: str
    """``strategy NAME`` if a restart strategy was being called; else empty."""
    stack: str
    """The stack of the loop's thread during that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsMissed:
    """A subscriber was too slow: this many records were dropped for it."""

    at: float
    count: int


Record = (
    StateChanged
    | FaultSeen
    | DecisionMade
    | RecoveryFailed
    | StartProgressed
    | LateStart
    | CleanupUnverified
    | SupervisorStateChanged
    | HookFailed
    | StrategyFailed
    | EventLoopBlocked
    | RecordsMissed
)
"""One record that a subscriber receives; distinguish them with ``match``."""
