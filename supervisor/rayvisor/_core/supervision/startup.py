"""Starts: of a supervisor with its children in order, and of one child."""

from __future__ import annotations

from collections import deque

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor._core.supervision.spares import Spares
from rayvisor.faults import Exit

__all__ = ["Boots"]


class Boots(Spares):
    """Brings supervisors and children up, and says what becomes of a start that fails."""

    def _boot(self, supervisor: Supervisor) -> None:
        supervisor.phase = Phase.STARTING
        self._out.append(m.SupervisorChanged(supervisor.path, "starting"))
        if not supervisor.simple:
            for spec in supervisor.spec.children:
                self._adopt(supervisor, spec)
        supervisor.queue = deque(supervisor.children.values())
        self._boot_next(supervisor)

    def _boot_next(self, supervisor: Supervisor) -> None:
        """Start as many of the waiting children as the start limit allows."""
        if supervisor.pumping:
            return
        supervisor.pumping = True
        limit = supervisor.spec.max_concurrent_starts
        while supervisor.phase is Phase.STARTING and supervisor.queue and len(supervisor.outstanding) < limit:
            child = supervisor.queue.popleft()
            if not child.removed and not child.begun:
                supervisor.outstanding.add(child.path)
                self._start(child)
        supervisor.pumping = False
        if supervisor.phase is Phase.STARTING and not supervisor.outstanding and not supervisor.queue:
            supervisor.phase = Phase.RUNNING
            supervisor.came_up = True
            self._out.append(m.SupervisorChanged(supervisor.path, "running"))
            if supervisor.owner is None:
                self._out.append(m.TreeUp())
            else:
                self._came_up(supervisor.owner)
            self._catch_up(supervisor)

    def _boot_step(self, child: Child) -> None:
        """Note that a child's part in its supervisor's start is done."""
        supervisor = child.parent
        if supervisor.phase is Phase.STARTING and child.path in supervisor.outstanding:
            supervisor.outstanding.discard(child.path)
            self._boot_next(supervisor)

    def _came_up(self, child: Child) -> None:
        child.up_since = self.now
        start_call, child.start_call = child.start_call, None
        self._move(child, "started")
        self._step_in(child)
        if start_call is not None:
            self._out.append(m.Reply(start_call.call, child.path))
        if child.parent.group is not None:
            self._group_step(child.parent, child)
        if child.parent.phase is Phase.STARTING:
            self._boot_step(child)

    def _ignored(self, child: Child) -> None:
        """Let a child whose start chose not to run rest, its spec kept unless temporary (OTP S5, G8, A2)."""
        supervisor = child.parent
        child.begun = False
        child.after = After.REST
        self._move(child, "exit", "ignored")
        self._move(child, "completed")
        start_call, child.start_call = child.start_call, None
        if start_call is not None:
            self._out.append(m.Reply(start_call.call, None))
        if start_call is None or start_call.verb is not m.Verb.RESTART_CHILD:
            self._forget_if_disposable(child)
        self._group_step(supervisor, child)
        self._boot_step(child)
        self._step_of_end(child)

    def _start_failed(self, child: Child, exit: Exit, *, gone: bool) -> None:  # noqa: A002 - OTP's word
        supervisor = child.parent
        child.exit = exit
        self._count_barren(child)
        self._goes_down(child, "fault", str(exit))
        if supervisor.phase is Phase.STOPPING or child.start_call is not None:
            child.after = After.REST
        elif supervisor.phase is Phase.STARTING and child.path in supervisor.outstanding:
            again = child.spec.retry_first_start and not exit.permanent
            child.after = After.RETRY if again else After.BOOT_FAILED
        else:
            child.after = After.RETRY
        self._part(child, gone=gone)
