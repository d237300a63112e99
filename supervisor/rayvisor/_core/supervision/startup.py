"""Starts: of one child, and of a supervisor with its children in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.followups import ChildUp, Proceed
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor.specs import SupervisorSpec

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = ["boot", "first_start_done", "grow", "start", "start_next"]


def start(state: State, child: Child) -> None:
    """Start the next incarnation of a child."""
    child.incarnation += 1
    child.begun = True
    child.restarting = False
    child.progressed = False
    child.stop_requested = False
    child.up_since = None
    child.after = After.REST
    if not state.move(child, "start"):
        # A fresh child is in STARTING already; observers get the change all the same.
        here = child.configuration
        state.out.append(
            m.Changed(child.path, child.incarnation, "start", here, here, "", child.table.chart.name)
        )
    if child.spec.gate is not None:
        state.move(child, "stale", "it has a gate")
    if child.subtree is not None:
        state.dissolve(child.subtree)
        child.subtree = None
    if isinstance(child.spec.start, SupervisorSpec):
        grow(state, child, child.spec.start)
    else:
        state.out.append(m.Start(child.path, child.incarnation, child.spec, child.exit))
    if child.waiting:
        state.resume_calls(child)  # they waited for it to be down, which it no longer is


def grow(state: State, child: Child, spec: SupervisorSpec) -> None:
    """Bring up the subtree of a child that is a supervisor."""
    child.subtree = subtree = Supervisor(child.path, spec, child)
    state.supervisors[child.path] = subtree
    boot(state, subtree)


def boot(state: State, supervisor: Supervisor) -> None:
    """Bring up a supervisor with its children."""
    supervisor.phase = Phase.STARTING
    state.out.append(m.SupervisorChanged(supervisor.path, "starting"))
    if not supervisor.simple:
        for spec in supervisor.spec.children:
            state.adopt(supervisor, spec)
    supervisor.queue = deque(supervisor.children.values())
    start_next(state, supervisor)


def start_next(state: State, supervisor: Supervisor) -> None:
    """Start as many of the waiting children as may come up side by side; called again when one is up."""
    limit = supervisor.spec.max_concurrent_starts
    queue, outstanding = supervisor.queue, supervisor.outstanding
    while queue and len(outstanding) < limit:
        child = queue.popleft()
        if child.awaits_first_start:
            outstanding.add(child.path)
            start(state, child)
            if state.posted:  # a supervisor without children is up at once
                state.post(Proceed(supervisor))
                return
    if not outstanding and not queue:
        supervisor.phase = Phase.RUNNING
        supervisor.came_up = True
        state.out.append(m.SupervisorChanged(supervisor.path, "running"))
        if supervisor.owner is None:
            state.out.append(m.TreeUp())
        else:
            state.post(ChildUp(supervisor.owner))
        state.post(Proceed(supervisor))


def first_start_done(state: State, child: Child) -> None:
    """Note that a child's part in its supervisor's start is done."""
    supervisor = child.parent
    if supervisor.phase is Phase.STARTING and child.path in supervisor.outstanding:
        supervisor.outstanding.discard(child.path)
        start_next(state, supervisor)
