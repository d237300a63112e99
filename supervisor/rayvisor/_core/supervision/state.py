"""The state of a tree, and the changes to one child that concern no other."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.followups import CallResumed
from rayvisor._core.supervision.nodes import Child, Supervisor
from rayvisor._core.supervision.paused import PausedPaths
from rayvisor.errors import ChildStartError
from rayvisor.faults import SHUTDOWN
from rayvisor.status import ENGINE_KINDS
from statecharts import compile_chart
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from random import Random

    from rayvisor._core.supervision.followups import FollowUp
    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, SupervisorSpec

__all__ = ["MOST_RETIRED", "State"]

MOST_RETIRED = 100_000
"""How many incarnation numbers of removed children are kept one by one."""

_TABLES = {name: compile_chart(CHARTS[name]) for name in ("actor", "engine")}


class State:
    """Children and supervisors by path, and the consequences so far of the event being handled.

    Parameters
    ----------
    spec
        The root supervisor.
    random
        Source of jitter.
    """

    __slots__ = (
        "_floor",
        "_retired_epochs",
        "_timer_ids",
        "asking",
        "children",
        "ended",
        "now",
        "out",
        "paused",
        "posted",
        "random",
        "root",
        "supervisors",
        "timers",
    )

    def __init__(self, spec: SupervisorSpec, random: Random) -> None:
        self.random = random
        # The time of the event being handled.
        self.now = 0.0
        # Its effects so far, and the follow-ups of the present step.
        self.out: list[m.Effect] = []
        self.posted: list[FollowUp] = []
        self.root = Supervisor("", spec, None)
        self.children: dict[str, Child] = {}
        self.supervisors: dict[str, Supervisor] = {"": self.root}
        self.ended = False
        # Name of the strategy that is being asked: it is a user's code, and may never return.
        self.asking = ""
        self.paused = PausedPaths()
        self.timers: dict[int, Child] = {}
        self._timer_ids = count(1)
        # Incarnation numbers of children whose spec is gone: a number is never used twice for a path.
        self._retired_epochs: dict[str, int] = {}
        self._floor = 0

    def post(self, event: FollowUp) -> None:
        """Have a follow-up handled after the present step.

        Whatever the step does after its first post must be posted as well, so that the order of effects is
        the order of causes.
        """
        self.posted.append(event)

    # --- children ---------------------------------------------------------------------------

    def adopt(self, parent: Supervisor, spec: ChildSpec) -> Child:
        """Add a child to the end of its supervisor's list."""
        path = parent.path_of(spec.id)
        table = _TABLES["engine" if getattr(spec.start, "kind", "") in ENGINE_KINDS else "actor"]
        paused = path in self.paused or (path not in self._retired_epochs and parent.path in self.paused)
        child = Child(path, spec, parent, table, self._retired_epochs.pop(path, self._floor))
        if paused:
            self.paused.add(path)
            child.configuration = table.step(child.configuration, "pause") or child.configuration
        if spec.standby:
            child.configuration = table.step(child.configuration, "standby") or child.configuration
            parent.spares = True
        parent.children[spec.id] = child
        self.children[path] = child
        return child

    def remove(self, child: Child) -> None:
        """Drop a child with its spec."""
        if child.removed:
            return
        child.removed = True
        self.refuse_start(child, None)
        supervisor = child.parent
        supervisor.failed_steps.pop(child, None)
        supervisor.recoveries.pop(child, None)
        self.drop_timer(child)
        supervisor.children.pop(child.spec.id, None)
        self.paused.drop(child.path)
        self._retire(child)
        self.out.append(m.Removed(child.path))

    def remove_if_disposable(self, child: Child) -> None:
        """Drop a child whose spec goes with its process."""
        if child.disposable:
            self.remove(child)

    def dissolve(self, supervisor: Supervisor) -> None:
        """Drop an ended supervisor's children from the index; its next incarnation makes its own."""
        for child in supervisor.children.values():
            self._retire(child)
        self.supervisors.pop(supervisor.path, None)

    def _retire(self, child: Child) -> None:
        self.children.pop(child.path, None)
        self._retired_epochs[child.path] = child.incarnation
        if child.subtree is not None:
            self.dissolve(child.subtree)
        if len(self._retired_epochs) > MOST_RETIRED:
            # Memory stays bounded: of the oldest half only the highest number is kept, for all.
            for path in list(islice(self._retired_epochs, MOST_RETIRED // 2)):
                self._floor = max(self._floor, self._retired_epochs.pop(path))

    def was_instance(self, path: str) -> bool:
        """Whether a child that is removed now had this path (OTP: a dead pid)."""
        return path in self._retired_epochs

    def live(self, path: str, incarnation: int) -> Child | None:
        """Return the child if this is its current incarnation: the fence every report passes."""
        child = self.children.get(path)
        return child if child is not None and child.incarnation == incarnation and child.begun else None

    # --- charts -----------------------------------------------------------------------------

    def move(self, child: Child, event: str, why: str = "") -> bool:
        """Follow an event of the child's chart; False when the present state does not accept it."""
        before = child.configuration
        after = child.table.step(before, event)
        if after is None:
            return False
        child.configuration = after
        if event == "stale":
            child.stales += 1
        self.out.append(
            m.Changed(child.path, child.incarnation, event, before, after, why, child.table.chart.name)
        )
        return True

    def rest(self, child: Child, why: str) -> None:
        """Let a child that waited down stay down."""
        self.move(child, "stop", why)
        self.move(child, "stopped")
        self.refuse_start(child, None)

    def decided(self, child: Child, decision: str, detail: str) -> None:
        """Report a decision about a child's last exit."""
        supervisor = child.parent
        self.out.append(
            m.Decided(
                child.path,
                child.incarnation,
                decision,
                child.exit or SHUTDOWN,
                detail,
                len(supervisor.window),
                supervisor.spec.intensity,
                child.delay,
            )
        )

    # --- timers -----------------------------------------------------------------------------

    def set_timer(self, child: Child, delay: float) -> None:
        """Set the child's one timer, in place of the one it has."""
        self.drop_timer(child)
        child.timer = next(self._timer_ids)
        self.timers[child.timer] = child
        self.out.append(m.SetTimer(child.timer, delay, child.path))

    def drop_timer(self, child: Child) -> None:
        """Cancel the child's timer, if it has one."""
        if child.timer:
            self.timers.pop(child.timer, None)
            self.out.append(m.CancelTimer(child.timer))
            child.timer = 0

    # --- answers ----------------------------------------------------------------------------

    def reply(self, call: m.Call, value: object) -> None:
        """Answer a call."""
        self.out.append(m.Reply(call.call, value))

    def refuse_start(self, child: Child, exit: Exit | None) -> None:
        """Answer the call that asked for the start under way with an error, if there is one."""
        start_call, child.start_call = child.start_call, None
        if start_call is not None:
            fault = None if exit is None else exit.fault
            self.out.append(m.Reply(start_call.call, None, ChildStartError(child.path, fault, exit)))

    def resume_calls(self, child: Child) -> None:
        """Continue the calls that waited for a child to be down."""
        waiting, child.waiting = child.waiting, ()
        if all(call.verb is m.Verb.TERMINATE_CHILD for call in waiting):
            for call in waiting:
                self.reply(call, None)
        else:
            for call in waiting:
                self.post(CallResumed(call))
