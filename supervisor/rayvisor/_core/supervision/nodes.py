"""The nodes of a tree as the core holds them: children, supervisors, and the plan being carried out.

Slots only, and nothing per child that a child at rest does not need: a tree may have a million.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from rayvisor._core.paths import join
from rayvisor._core.supervision.window import Window
from rayvisor.faults import ExitKind
from rayvisor.specs import Restart, Strategy
from rayvisor.status import is_up

if TYPE_CHECKING:
    from rayvisor._core.supervision.messages import Call
    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, SupervisorSpec
    from rayvisor.strategies import Step
    from statecharts import Configuration, Table

__all__ = ["After", "Child", "Phase", "PlanRun", "Recovery", "Supervisor"]


class After(Enum):
    """The next state of a child once it is proven gone."""

    REST = auto()
    """Down, its spec kept (OTP: pid undefined)."""
    RESTART = auto()
    """Started again, without its siblings."""
    PLAN = auto()
    """Left to the plan under way."""
    RETRY = auto()
    """Started again: the start of a restart has failed."""
    REMOVE = auto()
    """Removed with its spec."""
    FAIL = auto()
    """Failed: no restart can cure the fault."""
    EXHAUST = auto()
    """Exhausted: its supervisor gave up over it."""
    FIRST_START_FAILED = auto()
    """Down: its first start failed, and with it that of the supervisor."""


class Phase(Enum):
    """State of a supervisor."""

    DOWN = auto()
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()


class Child:
    """One child through all its incarnations; ``incarnation`` counts its starts."""

    __slots__ = (
        "after",
        "attempt",
        "begun",
        "configuration",
        "counted",
        "delay",
        "exit",
        "failing_since",
        "incarnation",
        "parent",
        "path",
        "progressed",
        "removed",
        "restarting",
        "spec",
        "stales",
        "start_call",
        "stop_requested",
        "subtree",
        "table",
        "timer",
        "unjudged",
        "unproductive_restarts",
        "up_since",
        "waiting",
    )

    def __init__(
        self, path: str, spec: ChildSpec, parent: Supervisor, table: Table, incarnation: int
    ) -> None:
        self.path = path
        self.spec = spec
        self.parent = parent
        self.table = table
        self.configuration: Configuration = table.initial
        self.incarnation = incarnation
        # How often it was declared stale. A gate hook that began before the last time does not count.
        self.stales = 0
        self.exit: Exit | None = None
        self.after: After = After.REST
        self.subtree: Supervisor | None = None
        # True from the effect that starts it until the proof that nothing of it is left.
        self.begun = False
        # It is down and waits for a timer before its restart (OTP: pid is `restarting`).
        self.restarting = False
        # It ended while a plan or the first starts were under way: the decision follows after those.
        self.unjudged = False
        self.removed = False
        # This incarnation was asked to end; it did not end by itself.
        self.stop_requested = False
        self.progressed = False
        self.unproductive_restarts = 0
        self.attempt = 0
        self.delay = 0.0
        self.counted = False
        self.timer = 0
        self.up_since: float | None = None
        self.failing_since: float | None = None
        # The call that began the start under way, and the calls that wait for the child to be down.
        self.start_call: Call | None = None
        self.waiting: tuple[Call, ...] = ()

    @property
    def disposable(self) -> bool:
        """Whether its spec is removed when its process ends (OTP R4, D3)."""
        return self.spec.restart is Restart.TEMPORARY or self.parent.simple

    @property
    def up(self) -> bool:
        """Whether it has come up and has not begun to end."""
        return is_up(self.configuration.state)

    @property
    def awaits_first_start(self) -> bool:
        """Whether its supervisor has still to start it for the first time."""
        return not self.begun and not self.removed and self.configuration.leaf == "STARTING"


class Supervisor:
    """One incarnation of a supervisor: its children in start order, and its restart history."""

    __slots__ = (
        "asks",
        "came_up",
        "children",
        "deferred",
        "ending",
        "exit",
        "failed_steps",
        "gave_up",
        "instances",
        "origin",
        "outstanding",
        "owner",
        "path",
        "phase",
        "plan_run",
        "queue",
        "recoveries",
        "recovery",
        "spares",
        "spec",
        "start_failure",
        "window",
    )

    def __init__(self, path: str, spec: SupervisorSpec, owner: Child | None) -> None:
        self.path = path
        self.spec = spec
        self.owner = owner
        self.children: dict[str, Child] = {}
        self.phase = Phase.DOWN
        self.came_up = False
        self.window = Window()
        self.exit: Exit | None = None
        self.gave_up = ""
        self.origin = ""
        self.start_failure: Child | None = None
        # Children still to be started (while STARTING, from the left) or stopped (STOPPING, from the right).
        self.queue: deque[Child] = deque()
        self.outstanding: set[str] = set()
        # The strategy's plan that is being carried out; no other one begins before it is over.
        self.plan_run: PlanRun | None = None
        # The step that failed over a child, until the strategy is asked about it.
        self.failed_steps: dict[Child, Step] = {}
        # How often in a row the strategy was asked without any of its plans starting a child.
        self.asks = 0
        # The recovery in place that is under way, and the recent ones of each child.
        self.recovery: Recovery | None = None
        self.recoveries: dict[Child, Window] = {}
        # Whether one of its children is, or has been, a spare.
        self.spares = False
        # Ends and retries that wait for the plan under way: child and incarnation.
        self.deferred: deque[tuple[Child, int]] = deque()
        # How many instances of its template it has chosen a name for.
        self.instances = 0

    @property
    def simple(self) -> bool:
        """Whether its children are instances of a template (OTP: ``simple_one_for_one``)."""
        return self.spec.strategy is Strategy.SIMPLE_ONE_FOR_ONE

    @property
    def killed(self) -> bool:
        """Whether it was killed: its children end side by side, not in order."""
        return self.exit is not None and self.exit.kind is ExitKind.KILLED

    @property
    def active(self) -> bool:
        """Whether it still starts and restarts children."""
        return self.phase is Phase.RUNNING or self.phase is Phase.STARTING

    def path_of(self, identity: str) -> str:
        """Path of the child with this id."""
        return join(self.path, identity)


class Recovery(NamedTuple):
    """A recovery in place under way: of one engine, or of a group of ranks, all of them or none."""

    failed: Child
    exit: Exit
    """The fault it recovers from."""
    members: list[Child]
    waiting: set[str]
    """Paths of the members that have not reported yet that they are healthy."""


class PlanRun:
    """A plan of the strategy being carried out: one at a time under each supervisor."""

    __slots__ = (
        "acted",
        "delay",
        "failed",
        "failure",
        "members",
        "outstanding",
        "step",
        "steps",
        "to_start",
        "to_stop",
    )

    def __init__(self, failed: Child, steps: Iterable[Step], members: Iterable[Child], delay: float) -> None:
        self.failed = failed
        self.steps = deque(steps)
        self.step: Step | None = None
        # The delay that is still to be waited out before the first start.
        self.delay = delay
        # Children that it has still to stop or start, in this order; one that is terminated by a call leaves.
        self.members = dict.fromkeys(members)
        self.to_stop: list[Child] = []
        self.to_start: deque[Child] = deque()
        self.outstanding: set[str] = set()
        # Whether the recovery in place has succeeded.
        self.acted = False
        # The child over which the present step failed.
        self.failure: Child | None = None
