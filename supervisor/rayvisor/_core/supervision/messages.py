"""Events that go into the core and effects that come out: plain tuples, so that a journal can hold them.

Events and effects are fenced: they name the child by its path, and the incarnation they are about. A path
is the ids from the root down, joined by ``/``; the root itself is the empty path.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from rayvisor._public import shown_as

if TYPE_CHECKING:
    from rayvisor.errors import StrategyError
    from rayvisor.faults import Exit, Fault
    from rayvisor.specs import ChildSpec, Shutdown, SupervisorSpec
    from statecharts import Configuration

# --- events -----------------------------------------------------------------------------------


class Boot(NamedTuple):
    """Start the tree."""


class Halt(NamedTuple):
    """End the tree, in reverse order. It overtakes everything in the runtime's queue."""

    reason: str = "shutdown"


class Started(NamedTuple):
    """An incarnation is up and can serve."""

    child: str
    incarnation: int


class Prepared(NamedTuple):
    """The spec of a supervisor that makes it at each start (OTP: ``init`` has returned).

    It answers the [`Start`][] of a child whose start spec has the kind ``"supervisor"``, as do StartFailed
    and Ignored.
    """

    child: str
    incarnation: int
    spec: SupervisorSpec


class Ignored(NamedTuple):
    """A start chose not to run (OTP: ``ignore``); nothing of it is left."""

    child: str
    incarnation: int


class StartFailed(NamedTuple):
    """A start failed; ``gone`` says whether it is proven that nothing of it is left."""

    child: str
    incarnation: int
    exit: Exit
    gone: bool = True


class Exited(NamedTuple):
    """An incarnation ended; ``gone`` says whether it is proven that nothing of it is left."""

    child: str
    incarnation: int
    exit: Exit
    gone: bool = True


class Gone(NamedTuple):
    """Proof, asked for with [`Clean`][], that nothing of an incarnation is left."""

    child: str
    incarnation: int
    verified: bool = True


class TimerFired(NamedTuple):
    """A timer that the core has set has run out."""

    timer: int


class Progressed(NamedTuple):
    """An incarnation has done useful work for the first time."""

    child: str
    incarnation: int


class Reported(NamedTuple):
    """An incarnation's condition changed: one of the chart's events, for example ``suspect``."""

    child: str
    incarnation: int
    event: str
    fault: Fault | None = None
    stales: int | None = None
    """With ``synced``: how often the child had been declared stale when its gate's hook began."""


class Acted(NamedTuple):
    """Whether the incarnation has recovered in place; answers [`Act`][]."""

    child: str
    incarnation: int
    ok: bool
    fault: Fault | None = None


class Verb(StrEnum):
    """The calls that a supervisor answers."""

    START_CHILD = "start_child"
    TERMINATE_CHILD = "terminate_child"
    RESTART_CHILD = "restart_child"
    DELETE_CHILD = "delete_child"
    WHICH_CHILDREN = "which_children"
    COUNT_CHILDREN = "count_children"
    GET_CHILDSPEC = "get_childspec"
    PAUSE = "pause"
    RESUME = "resume"
    STALE = "stale"
    """Engines with a gate pass it again: the state they serve with (their weights) is out of date."""
    APPLY_SPEC = "apply_spec"
    """Put another SupervisorSpec into force; this starts and ends nothing (OTP: code_change)."""


class Call(NamedTuple):
    """A verb on the supervisor at path ``target``; answered with exactly one [`Reply`][]."""

    call: int
    verb: Verb
    target: str
    argument: Any = None


Event = (
    Boot
    | Halt
    | Started
    | Prepared
    | Ignored
    | StartFailed
    | Exited
    | Gone
    | TimerFired
    | Progressed
    | Reported
    | Acted
    | Call
)

# --- effects ----------------------------------------------------------------------------------

SIBLING = "a sibling is restarted"
AGAIN = "it is restarted"
FOR_A_RESTART = frozenset({SIBLING, AGAIN})
"""Reasons of a [`Stop`][] after which the same child is started again."""


class Start(NamedTuple):
    """Start an incarnation; Started, Ignored or StartFailed answers it."""

    child: str
    incarnation: int
    spec: ChildSpec
    predecessor: Exit | None
    """Exit of the incarnation before, which is passed to the new one."""


class Stop(NamedTuple):
    """Ask an incarnation to end, wait, kill it, prove its end; Exited with ``gone`` answers it."""

    child: str
    incarnation: int
    shutdown: Shutdown
    reason: str = "shutdown"


class Clean(NamedTuple):
    """End the remains of an incarnation that ended by itself, and prove it; Gone answers it."""

    child: str
    incarnation: int


class Act(NamedTuple):
    """Have a live incarnation recover by its own means; Acted answers it."""

    child: str
    incarnation: int
    action: str
    timeout: float
    """Seconds it may take."""


class Kill(NamedTuple):
    """End an incarnation that should not exist (a late start). It has no answer."""

    child: str
    incarnation: int


class SetTimer(NamedTuple):
    """Feed TimerFired after ``delay`` seconds; zero puts it at the end of the queue."""

    timer: int
    delay: float
    child: str


class CancelTimer(NamedTuple):
    """Cancel a timer; the core ignores one that fires all the same."""

    timer: int


class Reply(NamedTuple):
    """The answer to a call: a value, or an exception that the caller gets."""

    call: int
    value: Any
    error: Exception | None = None


class Changed(NamedTuple):
    """A child's configuration changed."""

    child: str
    incarnation: int
    event: str
    before: Configuration
    after: Configuration
    why: str = ""
    chart: str = "actor"
    """Name of the chart it follows."""


class Decided(NamedTuple):
    """A decision about an end, with the figures behind it."""

    child: str
    incarnation: int
    decision: str
    """``restart``, ``observe``, ``retry_later``, ``in_place``, ``rest``, ``forget``, ``give_up``, ``fail``"""
    exit: Exit
    detail: str
    restarts: int = 0
    intensity: int = 0
    delay: float = 0.0


class StrategyFailed(NamedTuple):
    """A strategy raised, or made an unusable plan; the failed child is restarted by itself."""

    supervisor: str
    child: str
    error: StrategyError


class Removed(NamedTuple):
    """A child's spec is gone; no incarnation of it is started any more."""

    child: str


class SupervisorChanged(NamedTuple):
    """A supervisor starts, runs, is ending, or has ended."""

    path: str
    state: str
    """``starting``, ``running``, ``stopping``, ``ended``."""
    exit: Exit | None = None


class TreeUp(NamedTuple):
    """The root has started all its children."""


class TreeEnded(NamedTuple):
    """The root has ended; no effect follows but answers to calls."""

    exit: Exit
    gave_up: str = ""
    """Why it gave up; empty when it was asked to end or ended normally."""
    origin: str = ""
    """Path of the supervisor that gave up first, or of the child whose first start failed; else empty."""
    started: bool = True
    """False when it never came up."""


Effect = (
    Start
    | Stop
    | Clean
    | Act
    | Kill
    | SetTimer
    | CancelTimer
    | Reply
    | Changed
    | Decided
    | StrategyFailed
    | Removed
    | SupervisorChanged
    | TreeUp
    | TreeEnded
)


shown_as("rayvisor.testing", Reply, Verb)
