"""The runtime's record of one child: its incarnations, and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from rayvisor._runtime.children.protocol import ChildBackend, Incarnation
    from rayvisor._runtime.lifecycle import LifecycleMachine
    from rayvisor._runtime.served_starts import ServedStart
    from rayvisor.faults import Fault
    from rayvisor.specs import StartSpec, SupervisorSpec
    from statecharts import Configuration

__all__ = ["ChildRecord", "Run"]


class Run:
    """The task that starts one incarnation and waits for its end."""

    __slots__ = ("incarnation", "number", "over", "scope", "settled")

    def __init__(self, number: int) -> None:
        self.number = number
        self.incarnation: Incarnation | None = None
        self.scope = anyio.CancelScope()
        # Set when the start has a result.
        self.settled = anyio.Event()
        # Set when the task has ended.
        self.over = anyio.Event()


class ChildRecord:
    """A child, as its lifecycle hooks see it: ``change.model`` is its record.

    Attributes
    ----------
    child
        Its path.
    incarnation
        Its newest incarnation.
    state
        Where it is in its chart.
    """

    __slots__ = (
        "backend",
        "child",
        "faults",
        "incarnation",
        "machine",
        "released",
        "removed",
        "runs",
        "served",
        "start",
        "state",
    )

    def __init__(self, child: str, state: Configuration, machine: LifecycleMachine) -> None:
        self.child = child
        self.incarnation = 0
        self.state = state
        self.machine = machine
        self.backend: ChildBackend | None = None
        self.start: StartSpec | SupervisorSpec | None = None
        self.served: ServedStart | None = None
        self.faults: dict[int, Fault] = {}
        self.runs: dict[int, Run] = {}
        # Set when its resources have been released; until then no incarnation is started.
        self.released: anyio.Event | None = None
        self.removed = False

    def __repr__(self) -> str:
        return f"<{self.child}, incarnation {self.incarnation}, {self.state}>"

    @property
    def idle(self) -> bool:
        """Whether no task runs for it."""
        released = self.released is None or self.released.is_set()
        return released and all(run.over.is_set() for run in self.runs.values())

    def begin(self, incarnation: int) -> Run:
        """Add an incarnation, and drop older ones that have nothing more to report."""
        for number in [number for number, run in self.runs.items() if run.over.is_set()]:
            del self.runs[number]
        for number in sorted(self.faults)[:-1]:
            del self.faults[number]
        self.incarnation = incarnation
        self.removed = False
        run = self.runs[incarnation] = Run(incarnation)
        return run
