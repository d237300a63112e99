"""What a supervisor tells those who watch it: frozen records, in the order things happened.

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
    "RecoveryFailedError",
    "StartProgressed",
    "StateChanged",
    "StrategyFailed",
    "SupervisorStateChanged",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """A child went from one configuration to another."""

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
    """What the supervisor decided about an end."""

    at: float
    child: str
    incarnation: int
    decision: str
    """``restart``, ``observe``, ``retry_later``, ``in_place``, ``rest``, ``forget``, ``give_up``, ``fail``"""
    why: str
    restarts: int
    """Restarts in the window, this one included."""
    intensity: int
    delay: float
    """Seconds the child waits down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFailedError:
    """An incarnation that was to recover in place has not, or has not said so in time: it is restarted."""

    at: float
    child: str
    incarnation: int
    action: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProgressed:
    """A start has got further."""

    at: float
    child: str
    incarnation: int
    phase: str
    detail: str
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LateStart:
    """An incarnation came up after its start had been given up, and was ended at once."""

    at: float
    child: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupUnverified:
    """Nobody could prove that nothing is left of an incarnation; the next start goes on all the same."""

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
    """A hook of the user's raised; the child went on without it."""

    at: float
    child: str
    hook: str
    place: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyFailed:
    """A restart strategy raised, or its plan cannot be carried out; the child is restarted by itself."""

    at: float
    child: str
    strategy: str
    problem: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLoopBlocked:
    """The supervisor's event loop stood still for some seconds: something on it did not return."""

    at: float
    seconds: float
    activity: str
    """``strategy NAME`` when a restart strategy was being asked; else empty."""
    stack: str
    """What the loop's thread was doing meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsMissed:
    """A watcher was too slow: this many records were dropped for it."""

    at: float
    count: int


Record = (
    StateChanged
    | FaultSeen
    | DecisionMade
    | RecoveryFailedError
    | StartProgressed
    | LateStart
    | CleanupUnverified
    | SupervisorStateChanged
    | HookFailed
    | StrategyFailed
    | EventLoopBlocked
    | RecordsMissed
)
"""What a watcher is given: one of these, told apart by ``match``."""
