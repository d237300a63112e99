"""The nodes of a tree as the core holds them: children, supervisors, and one group restart.

Slots only, and nothing per child that a child at rest does not need: a tree may have a million.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING

from rayvisor._core.window import Window

if TYPE_CHECKING:
    from rayvisor._core.exits import Exit
    from rayvisor.specs import ChildSpec, SupervisorSpec
    from statecharts import Configuration, Table

__all__ = ["After", "Child", "GroupRestart", "Phase", "Supervisor"]


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
        "added_by_call",
        "after",
        "attempt",
        "barren",
        "begun",
        "calls",
        "configuration",
        "counted",
        "delay",
        "exit",
        "failing_since",
        "forgotten",
        "incarnation",
        "parent",
        "path",
        "progressed",
        "restarting",
        "spec",
        "started_by_call",
        "subtree",
        "table",
        "timer",
        "unjudged",
        "up_since",
    )

    def __init__(self, path: str, spec: ChildSpec, parent: Supervisor, table: Table, incarnation: int) -> None:
        self.path = path
        self.spec = spec
        self.parent = parent
        self.table = table
        self.configuration: Configuration = table.initial
        self.incarnation = incarnation
        self.exit: Exit | None = None
        self.after: After = After.REST
        self.subtree: Supervisor | None = None
        # From the order to start until the proof that nothing is left.
        self.begun = False
        # Waits for a timer to be started again (OTP: pid is `restarting`).
        self.restarting = False
        # Ended while a group restart was under way: what that means is decided after it.
        self.unjudged = False
        self.forgotten = False
        self.progressed = False
        self.barren = 0
        self.attempt = 0
        self.delay = 0.0
        self.counted = False
        self.timer = 0
        self.up_since: float | None = None
        self.failing_since: float | None = None
        self.calls: tuple[int, ...] = ()
        self.started_by_call = False
        self.added_by_call = False


class Supervisor:
    """One incarnation of a supervisor: its children in start order, and its restart history."""

    __slots__ = (
        "boot_failure",
        "children",
        "deferred",
        "exit",
        "gave_up",
        "group",
        "origin",
        "outstanding",
        "owner",
        "path",
        "phase",
        "pumping",
        "queue",
        "spec",
        "window",
    )

    def __init__(self, path: str, spec: SupervisorSpec, owner: Child | None) -> None:
        self.path = path
        self.spec = spec
        self.owner = owner
        self.children: dict[str, Child] = {}
        self.phase = Phase.DOWN
        self.window = Window()
        self.exit: Exit | None = None
        self.gave_up = ""
        self.origin = ""
        self.boot_failure: Child | None = None
        # Children still to be started (while STARTING, from the left) or stopped (STOPPING, from the right).
        self.queue: deque[Child] = deque()
        self.outstanding: set[str] = set()
        self.group: GroupRestart | None = None
        self.deferred: deque[Child] = deque()
        # Starts are being handed out further up the stack: a start that succeeds at once must not recurse.
        self.pumping = False

    def path_of(self, identity: str) -> str:
        """Path of the child with this id."""
        return f"{self.path}/{identity}" if self.path else identity


class GroupRestart:
    """A restart of several siblings: stop in reverse, perhaps wait, start in order."""

    __slots__ = ("delay", "failed", "failure", "outstanding", "starting", "to_start", "to_stop")

    def __init__(self, failed: Child, members: list[Child], delay: float) -> None:
        self.failed = failed
        self.delay = delay
        self.to_stop = members
        self.to_start: deque[Child] = deque()
        self.starting = False
        self.outstanding: set[str] = set()
        self.failure: Child | None = None
