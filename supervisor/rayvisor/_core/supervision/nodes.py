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

if TYPE_CHECKING:
    from rayvisor._core.supervision.messages import Call
    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, SupervisorSpec
    from rayvisor.strategies import Step
    from statecharts import Configuration, Table

__all__ = ["After", "Child", "Phase", "PlanRun", "Recovery", "Supervisor"]


class After(Enum):
    """What becomes of a child once it is proven gone."""

    REST = auto()
    """Down, its spec kept (OTP: pid undefined)."""
    RESTART = auto()
    """It is started again, by itself."""
    GROUP = auto()
    """A group restart takes it from here."""
    RETRY = auto()
    """A start failed within a restart: try again."""
    FORGET = auto()
    """Its spec goes too."""
    FAIL = auto()
    """No restart can cure it."""
    EXHAUST = auto()
    """Its supervisor gave up over it."""
    BOOT_FAILED = auto()
    """Its first start failed, and so the supervisor's."""


class Phase(Enum):
    """Where a supervisor stands."""

    DOWN = auto()
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()


class Child:
    """One child for good; ``incarnation`` counts its starts."""

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
        # How often it was declared stale: what brought it up to date before the last time does not count.
        self.stales = 0
        self.exit: Exit | None = None
        self.after: After = After.REST
        self.subtree: Supervisor | None = None
        # From the order to start until the proof that nothing is left.
        self.begun = False
        # Waits for a timer to be started again (OTP: pid is `restarting`).
        self.restarting = False
        # Ended while a group restart was under way: what that means is decided after it.
        self.unjudged = False
        self.removed = False
        # This incarnation was told to end; it did not end by itself.
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
        """Whether its spec goes with its process (OTP R4, D3)."""
        return self.spec.restart is Restart.TEMPORARY or self.parent.simple

    @property
    def up(self) -> bool:
        """Whether it has come up and has not begun to end."""
        state = self.configuration.state
        return state == "ALIVE" or state == "PAUSED"  # noqa: PLR1714 - twice as fast as a set, and hot

    @property
    def awaits_first_start(self) -> bool:
        """Whether its supervisor has still to start it for the first time."""
        return not self.begun and not self.removed and self.configuration.leaf == "STARTING"


class Supervisor:
    """One incarnation of a supervisor: its children in start order, and its restart history."""

    __slots__ = (
        "asks",
        "boot_failure",
        "broken",
        "came_up",
        "children",
        "deferred",
        "ending",
        "exit",
        "gave_up",
        "group",
        "instances",
        "origin",
        "outstanding",
        "owner",
        "path",
        "phase",
        "queue",
        "recoveries",
        "recovery",
        "spares",
        "spec",
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
        self.boot_failure: Child | None = None
        # Children still to be started (while STARTING, from the left) or stopped (STOPPING, from the right).
        self.queue: deque[Child] = deque()
        self.outstanding: set[str] = set()
        # The strategy's plan that is being carried out; it has the supervisor to itself.
        self.group: PlanRun | None = None
        # Which step failed over a child, until the strategy is asked about it.
        self.broken: dict[Child, Step] = {}
        # How often in a row the strategy was asked again without anything being started.
        self.asks = 0
        # The recovery in place that is under way, and when there were some, by child.
        self.recovery: Recovery | None = None
        self.recoveries: dict[Child, Window] = {}
        # Whether one of its children is, or has been, a spare.
        self.spares = False
        # Ends and retries that wait for the group restart under way: child and incarnation.
        self.deferred: deque[tuple[Child, int]] = deque()
        # How many instances of its template it has named itself.
        self.instances = 0

    @property
    def simple(self) -> bool:
        """Whether its children are instances of a template (OTP: ``simple_one_for_one``)."""
        return self.spec.strategy is Strategy.SIMPLE_ONE_FOR_ONE

    @property
    def killed(self) -> bool:
        """Whether it did not end in order: its children end side by side."""
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
    """What it recovers from."""
    members: list[Child]
    waiting: set[str]
    """Paths of those that have not said yet that they are healthy."""


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
        # Who is still to be stopped or started by it; who is terminated by hand meanwhile leaves.
        self.members = dict.fromkeys(members)  # in this order
        self.to_stop: list[Child] = []
        self.to_start: deque[Child] = deque()
        self.outstanding: set[str] = set()
        # Whether what was to be done in place is done.
        self.acted = False
        # Over whom the present step failed.
        self.failure: Child | None = None
