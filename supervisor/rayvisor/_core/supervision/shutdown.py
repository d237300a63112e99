"""The end of a supervisor: in reverse order, or side by side; giving up; automatic shutdown."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.children import Motions
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor.faults import SHUTDOWN, Exit, ExitKind
from rayvisor.specs import AutoShutdown

__all__ = ["Halts"]


class Halts(Motions):
    """Ends supervisors, and tells their owners."""

    @abstractmethod
    def _goes_down(self, down: Child, event: str, why: str) -> None: ...

    @abstractmethod
    def _decided(self, child: Child, decision: str, detail: str) -> None: ...

    # --- why a supervisor ends ----------------------------------------------------------------

    def _auto_shutdown(self, child: Child) -> None:
        """End the supervisor if the end of a significant child says so (OTP U1, U2, D10)."""
        supervisor = child.parent
        rule = supervisor.spec.auto_shutdown
        if not child.spec.significant or rule is AutoShutdown.NEVER:
            return
        if rule is AutoShutdown.ALL_SIGNIFICANT and any(
            other is not child and other.spec.significant and self._counts_as_active(other)
            for other in supervisor.children.values()
        ):
            return
        self._halt(supervisor, SHUTDOWN)

    @staticmethod
    def _counts_as_active(child: Child) -> bool:
        """Whether OTP would hold a pid, or a restart under way, for it."""
        if child.restarting or child.unjudged:
            return True
        down = child.configuration.leaf == "STOPPING" and child.after in {After.REST, After.FORGET}
        return child.begun and not down

    def _give_up(self, child: Child, why: str, after: After, *, final: bool = False) -> None:
        """End the supervisor over a child that it cannot keep up (OTP I1, I9, P1).

        A ``final`` end is not undone by a restart further up: the same would come of it.
        """
        supervisor = child.parent
        child.after = after
        child.restarting = False
        self._drop_timer(child)
        self._decided(child, "give_up" if after is After.EXHAUST else "fail", why)
        below = child.subtree
        supervisor.gave_up = below.gave_up if below is not None and below.gave_up else why
        supervisor.origin = below.origin if below is not None and below.gave_up else supervisor.path
        if supervisor.phase is Phase.STARTING:
            supervisor.boot_failure = child
        fault = None if child.exit is None else child.exit.fault
        final = final or (child.exit is not None and child.exit.final)
        self._halt(supervisor, Exit(ExitKind.SHUTDOWN, fault=fault, final=final))

    def _boot_failed(self, child: Child, exit: Exit) -> None:  # noqa: A002 - OTP's word
        """End the supervisor because a first start failed: what is up goes down again (OTP S3)."""
        supervisor = child.parent
        if supervisor.phase is not Phase.STARTING:
            return  # another start has failed before, and the supervisor is ending
        supervisor.boot_failure = child
        below = child.subtree
        supervisor.origin = below.origin if below is not None and below.origin else child.path
        self._halt(supervisor, Exit(ExitKind.FAULT, "failed_to_start_child", exit.fault, child.spec.id, exit))

    # --- how it ends --------------------------------------------------------------------------

    def _halt(self, supervisor: Supervisor, exit: Exit) -> None:  # noqa: A002 - OTP's word
        """Stop a supervisor's children; `_over` follows when all are gone.

        A supervisor that is killed has its children end side by side, also when it was ending in order
        before (OTP T2, T5).
        """
        killed = exit.kind is ExitKind.KILLED
        if supervisor.phase is Phase.STOPPING and killed and not supervisor.killed:
            supervisor.exit = exit
            self._out.append(m.SupervisorChanged(supervisor.path, "stopping", exit))
            self._halt_all(supervisor)
        if not supervisor.active:
            return
        supervisor.phase = Phase.STOPPING
        supervisor.exit = exit
        supervisor.group = None
        supervisor.recovery = None
        supervisor.deferred.clear()
        supervisor.outstanding.clear()
        supervisor.queue = deque(supervisor.children.values())
        self._out.append(m.SupervisorChanged(supervisor.path, "stopping", exit))
        if killed or supervisor.simple:
            self._halt_all(supervisor)
        else:
            self._halt_next(supervisor)

    def _halt_all(self, supervisor: Supervisor) -> None:
        """Ask all children to end, side by side (OTP D5)."""
        supervisor.ending = True
        for child in reversed(supervisor.queue):
            self._halt_child(child)
        supervisor.ending = False
        self._halt_next(supervisor)

    def _halt_next(self, supervisor: Supervisor) -> None:
        if supervisor.ending or supervisor.phase is not Phase.STOPPING:
            return
        supervisor.ending = True
        queue = supervisor.queue
        while queue:
            child = queue[-1]
            self._halt_child(child)
            if child.begun:
                break  # `_step_of_end` comes back when it is gone
            queue.pop()
        supervisor.ending = False
        if not queue:
            self._over(supervisor)

    def _halt_child(self, child: Child) -> None:
        """Stop one child with its supervisor, or let it rest if it is down already."""
        if child.removed:
            return
        if not child.begun:
            self._drop_timer(child)
            child.restarting = child.unjudged = False
            self._rest_in_place(child)
        elif child.configuration.leaf == "STOPPING":
            child.unjudged = False
            if child.after not in {After.FAIL, After.EXHAUST, After.FORGET, After.BOOT_FAILED}:
                child.after = After.REST
        else:
            self._stop(child, After.REST, "killed" if child.parent.killed else "shutdown")

    def _rest_in_place(self, child: Child) -> None:
        """Let a child that is down while its supervisor ends keep its leaf, unless it waited to start."""
        if child.after in {After.EXHAUST, After.FAIL}:
            self._move(child, "exhausted" if child.after is After.EXHAUST else "failed")
        elif child.configuration.state == "RESTARTING":
            self._move(child, "stop")
            self._move(child, "stopped")
        self._refuse_starter(child, None)
        self._answer_waiting(child)

    def _step_of_end(self, child: Child) -> None:
        """A child is down: go on with its supervisor's end, if that is under way."""
        if child.parent.phase is Phase.STOPPING:
            self._halt_next(child.parent)

    def _over(self, supervisor: Supervisor) -> None:
        """All children are gone: the supervisor itself ends, and its owner hears of it."""
        supervisor.phase = Phase.DOWN
        exit = supervisor.exit or SHUTDOWN  # noqa: A001 - OTP's word
        self._out.append(m.SupervisorChanged(supervisor.path, "ended", exit))
        owner = supervisor.owner
        if owner is None:
            self.ended = True
            self._out.append(m.TreeEnded(exit, supervisor.gave_up, supervisor.origin, supervisor.came_up))
        elif owner.configuration.leaf == "STOPPING":  # it was asked to end
            owner.exit = exit
            self._child_gone(owner)
        elif supervisor.boot_failure is not None:
            self._start_failed(owner, exit, gone=True)
        else:
            self._died(owner, exit, gone=True)
