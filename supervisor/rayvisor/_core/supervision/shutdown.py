"""The end of a supervisor: in reverse order, or side by side; giving up; automatic shutdown."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.followups import LimitShutdown, Proceed, StopRest, SupervisorEnded
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor.faults import KILLED, SHUTDOWN, Exit, ExitKind
from rayvisor.specs import AutoShutdown

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = [
    "auto_shutdown",
    "first_start_failed",
    "give_up",
    "halt",
    "limit_shutdown",
    "stop",
    "stop_next",
    "stop_rest",
    "supervisor_over",
]

_FINAL = frozenset({After.FAIL, After.EXHAUST, After.REMOVE, After.FIRST_START_FAILED})
"""Next states that hold also when the supervisor ends meanwhile."""

# --- why a supervisor ends --------------------------------------------------------------------


def auto_shutdown(state: State, child: Child) -> None:
    """End the supervisor if the end of a significant child requires it (OTP U1, U2, D10)."""
    supervisor = child.parent
    rule = supervisor.spec.auto_shutdown
    if not child.spec.significant or rule is AutoShutdown.NEVER:
        return
    if rule is AutoShutdown.ALL_SIGNIFICANT and any(
        other is not child and other.spec.significant and _counts_as_active(other)
        for other in supervisor.children.values()
    ):
        return
    halt(state, supervisor, SHUTDOWN)


def _counts_as_active(child: Child) -> bool:
    """Whether OTP would hold a pid, or a restart under way, for it."""
    if child.restarting or child.unjudged:
        return True
    down = child.configuration.leaf == "STOPPING" and child.after in {After.REST, After.REMOVE}
    return child.begun and not down


def give_up(state: State, child: Child, why: str, after: After, *, final: bool = False) -> None:
    """End the supervisor over a child that it cannot keep up (OTP I1, I9, P1).

    A ``final`` end is not undone by a restart further up, which would end the same way.
    """
    supervisor = child.parent
    child.after = after
    child.restarting = False
    state.drop_timer(child)
    state.decided(child, "give_up" if after is After.EXHAUST else "fail", why)
    below = child.subtree
    supervisor.gave_up = below.gave_up if below is not None and below.gave_up else why
    supervisor.origin = below.origin if below is not None and below.gave_up else supervisor.path
    if supervisor.phase is Phase.STARTING:
        supervisor.start_failure = child
    fault = None if child.exit is None else child.exit.fault
    final = final or (child.exit is not None and child.exit.final)
    halt(state, supervisor, Exit(ExitKind.SHUTDOWN, fault=fault, final=final))


def first_start_failed(state: State, child: Child, exit: Exit) -> None:
    """End the supervisor because a first start failed: children that are up go down again (OTP S3)."""
    supervisor = child.parent
    if supervisor.phase is not Phase.STARTING:
        return  # another start has failed before, and the supervisor is ending
    supervisor.start_failure = child
    below = child.subtree
    supervisor.origin = below.origin if below is not None and below.origin else child.path
    reason = Exit(ExitKind.FAULT, "failed_to_start_child", exit.fault, child.spec.id, exit)
    halt(state, supervisor, reason)


# --- how it ends ------------------------------------------------------------------------------


def halt(state: State, supervisor: Supervisor, exit: Exit) -> None:
    """Stop a supervisor's children; it is over when all are gone.

    A supervisor that is killed has its children end side by side, also when it was ending in order before
    (OTP T2, T5).
    """
    killed = exit.kind is ExitKind.KILLED
    if supervisor.active:
        supervisor.phase = Phase.STOPPING
        supervisor.plan_run = None
        supervisor.recovery = None
        supervisor.deferred.clear()
        supervisor.outstanding.clear()
        supervisor.queue = deque(supervisor.children.values())
    elif supervisor.phase is not Phase.STOPPING or not killed or supervisor.killed:
        return
    supervisor.exit = exit
    state.out.append(m.SupervisorChanged(supervisor.path, "stopping", exit))
    if killed or supervisor.simple:
        stop_rest(state, StopRest(supervisor, reversed(list(supervisor.queue))))
    else:
        stop_next(state, supervisor)


def stop_rest(state: State, rest: StopRest) -> None:
    """Ask all children to end, side by side (OTP D5)."""
    for child in rest.children:
        _stop_with_supervisor(state, child)
        if state.posted:
            state.post(rest)
            return
    stop_next(state, rest.supervisor)


def stop_next(state: State, supervisor: Supervisor) -> None:
    """Ask the children to end one at a time, the last first; called again when one is gone."""
    if supervisor.phase is not Phase.STOPPING:
        return
    queue = supervisor.queue
    while queue:
        child = queue[-1]
        _stop_with_supervisor(state, child)
        if child.begun:
            return
        queue.pop()
        if state.posted:
            state.post(Proceed(supervisor))
            return
    supervisor_over(state, supervisor)


def _stop_with_supervisor(state: State, child: Child) -> None:
    """Stop one child with its supervisor, or let it rest if it is down already."""
    if child.removed:
        return
    if not child.begun:
        state.drop_timer(child)
        child.restarting = child.unjudged = False
        _rest_in_place(state, child)
    elif child.configuration.leaf == "STOPPING":
        child.unjudged = False
        if child.after not in _FINAL:
            child.after = After.REST
    else:
        stop(state, child, After.REST, "killed" if child.parent.killed else "shutdown")


def _rest_in_place(state: State, child: Child) -> None:
    """Let a child that is down while its supervisor ends keep its leaf, unless it waited to start."""
    if child.after in {After.EXHAUST, After.FAIL}:
        state.move(child, "exhausted" if child.after is After.EXHAUST else "failed")
    elif child.configuration.state == "RESTARTING":
        state.move(child, "stop")
        state.move(child, "stopped")
    state.refuse_start(child, None)
    state.resume_calls(child)


def stop(state: State, child: Child, after: After, reason: str = "shutdown") -> None:
    """End a child that runs; ``after`` is its next state once it is proven gone."""
    child.after = after
    state.drop_timer(child)
    child.restarting = False
    child.unjudged = False
    if child.configuration.leaf == "STOPPING":
        return  # its end is under way already; only its next state changes
    child.stop_requested = True
    state.move(child, "stop", reason)
    ending = child.spec.ending
    subtree = child.subtree
    if subtree is None:
        state.out.append(m.Stop(child.path, child.incarnation, ending, reason))
        return
    if child.parent.killed:
        # An orphan receives the exit of its killed supervisor, and ends in order, in its own time (OTP T5).
        halt(state, subtree, SHUTDOWN)
        return
    halt(state, subtree, KILLED if ending.seconds is None else SHUTDOWN)
    if state.posted:
        state.post(LimitShutdown(subtree))
    else:
        limit_shutdown(state, subtree)


def limit_shutdown(state: State, supervisor: Supervisor) -> None:
    """Set the timer after which an ending supervisor is killed, and its children end side by side."""
    owner = supervisor.owner
    if owner is None or supervisor.phase is not Phase.STOPPING:
        return
    ending = owner.spec.ending
    if ending.seconds is not None and not ending.endless:
        state.set_timer(owner, ending.seconds)


def supervisor_over(state: State, supervisor: Supervisor) -> None:
    """End a supervisor whose children are all gone; for its owner that is the end of a child."""
    supervisor.phase = Phase.DOWN
    exit = supervisor.exit or SHUTDOWN
    state.out.append(m.SupervisorChanged(supervisor.path, "ended", exit))
    if supervisor.owner is None:
        state.ended = True
        state.out.append(m.TreeEnded(exit, supervisor.gave_up, supervisor.origin, supervisor.came_up))
    else:
        state.post(SupervisorEnded(supervisor))
