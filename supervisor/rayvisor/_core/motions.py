"""The core's lower half: moving one child along its chart, starting it, stopping it, timers."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from rayvisor._core import messages as m
from rayvisor._core.exits import SHUTDOWN, Exit
from rayvisor._core.tree import After, Child, Phase, Supervisor
from rayvisor.specs import Restart, SupervisorSpec
from statecharts import compile_chart
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from random import Random

    from rayvisor.specs import ChildSpec

__all__ = ["Motions"]

_TABLES = {name: compile_chart(CHARTS[name]) for name in ("actor", "engine")}


class Motions:
    """What happens to one child at a time; what it means for its siblings is decided above."""

    def __init__(self, spec: SupervisorSpec, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.root = Supervisor("", spec, None)
        self.children: dict[str, Child] = {}
        self.supervisors: dict[str, Supervisor] = {"": self.root}
        self.ended = False
        self._out: list[m.Effect] = []
        self._timers: dict[int, Child] = {}
        self._timer_ids = count(1)
        # Incarnation numbers of children whose spec is gone: a number is never used twice for a path.
        self._tombs: dict[str, int] = {}

    # --- children ---------------------------------------------------------------------------

    def _adopt(self, parent: Supervisor, spec: ChildSpec) -> Child:
        """Add a child to the end of its supervisor's list."""
        path = parent.path_of(spec.id)
        table = _TABLES["engine" if getattr(spec.start, "kind", "") == "engine" else "actor"]
        child = Child(path, spec, parent, table, self._tombs.pop(path, 0))
        if spec.standby:
            child.configuration = table.step(table.initial, "standby") or table.initial
        parent.children[spec.id] = child
        self.children[path] = child
        return child

    def _forget(self, child: Child) -> None:
        """Drop a child with its spec."""
        if child.forgotten:
            return
        child.forgotten = True
        self._drop_timer(child)
        child.parent.children.pop(child.spec.id, None)
        self.children.pop(child.path, None)
        self._tombs[child.path] = child.incarnation
        if child.subtree is not None:
            self._dissolve(child.subtree)
        self._out.append(m.Forgotten(child.path))

    def _dissolve(self, supervisor: Supervisor) -> None:
        """Drop an ended supervisor's children from the index; its next incarnation makes its own."""
        for child in supervisor.children.values():
            self._tombs[child.path] = child.incarnation
            self.children.pop(child.path, None)
            if child.subtree is not None:
                self._dissolve(child.subtree)
        self.supervisors.pop(supervisor.path, None)

    def _live(self, path: str, incarnation: int) -> Child | None:
        """Return the child if this is its current incarnation: the fence every report passes."""
        child = self.children.get(path)
        return child if child is not None and child.incarnation == incarnation else None

    # --- charts -----------------------------------------------------------------------------

    def _move(self, child: Child, event: str, why: str = "") -> bool:
        before = child.configuration
        after = child.table.step(before, event)
        if after is None:
            return False
        child.configuration = after
        self._out.append(m.Changed(child.path, child.incarnation, event, before, after, why))
        return True

    @staticmethod
    def _up(child: Child) -> bool:
        state = child.configuration.state
        return state == "ALIVE" or state == "PAUSED"  # noqa: PLR1714 - twice as fast as a set, and hot

    # --- starting and stopping --------------------------------------------------------------

    def _start(self, child: Child) -> None:
        child.incarnation += 1
        child.begun = True
        child.restarting = False
        child.progressed = False
        child.up_since = None
        child.after = After.REST
        if not self._move(child, "start"):
            # A fresh child is in STARTING from the beginning; what watches is told all the same.
            here = child.configuration
            self._out.append(m.Changed(child.path, child.incarnation, "start", here, here))
        if isinstance(child.spec.start, SupervisorSpec):
            if child.subtree is not None:
                self._dissolve(child.subtree)
            child.subtree = subtree = Supervisor(child.path, child.spec.start, child)
            self.supervisors[child.path] = subtree
            self._boot(subtree)
        else:
            self._out.append(m.Start(child.path, child.incarnation, child.spec, child.exit))

    def _stop(self, child: Child, after: After, reason: str = "shutdown") -> None:
        """End what there is of a child; `_landed` follows once it is proven gone."""
        child.after = after
        self._drop_timer(child)
        child.restarting = False
        child.unjudged = False
        if not child.begun:
            self._landed(child)
            return
        if child.configuration.leaf == "STOPPING":
            return  # its end is under way already, only its meaning changes
        self._move(child, "stop", reason)
        if child.subtree is not None:
            self._halt(child.subtree, SHUTDOWN)
        else:
            self._out.append(m.Stop(child.path, child.incarnation, child.spec.ending, reason))

    def _landed(self, child: Child) -> None:
        """Go on with a child of which nothing is left."""
        raise AssertionError  # pragma: no cover - defined by the upper half

    def _boot(self, supervisor: Supervisor) -> None:
        raise AssertionError  # pragma: no cover - defined by the upper half

    def _halt(self, supervisor: Supervisor, exit: Exit) -> None:  # noqa: A002 - OTP's word
        raise AssertionError  # pragma: no cover - defined by the upper half

    def _rest(self, child: Child, event: str) -> None:
        """Put a child that is down into a final leaf, or drop it if it is temporary."""
        if not self._move(child, event) and child.configuration.leaf == "BACKOFF":
            self._move(child, "stop")
        if child.spec.restart is Restart.TEMPORARY:
            self._forget(child)

    # --- timers and answers -----------------------------------------------------------------

    def _set_timer(self, child: Child, delay: float) -> None:
        self._drop_timer(child)
        child.timer = next(self._timer_ids)
        self._timers[child.timer] = child
        self._out.append(m.SetTimer(child.timer, delay, child.path))

    def _drop_timer(self, child: Child) -> None:
        if child.timer:
            self._timers.pop(child.timer, None)
            self._out.append(m.CancelTimer(child.timer))
            child.timer = 0

    def _answer(self, child: Child, value: object, error: Exception | None = None) -> None:
        """Answer every call that waits for this child."""
        calls, child.calls = child.calls, ()
        for call in calls:
            self._out.append(m.Reply(call, value, error))

    def _active(self, supervisor: Supervisor) -> bool:
        return supervisor.phase is Phase.STARTING or supervisor.phase is Phase.RUNNING
