"""Outcomes of an incarnation: it came up, chose not to run, failed to start, or ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.endings import child_gone, settle
from rayvisor._core.supervision.followups import ChildEnded, RecoveryLost
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor._core.supervision.plan_runner import child_changed
from rayvisor._core.supervision.restarts import judge
from rayvisor._core.supervision.spares import go_down, step_in
from rayvisor._core.supervision.startup import first_start_done
from rayvisor.faults import SHUTDOWN, Exit
from rayvisor.specs import Strategy

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = ["came_up", "child_ended", "died", "ignored", "start_failed", "supervisor_ended"]


def came_up(state: State, child: Child) -> None:
    """Continue after an incarnation has come up."""
    child.up_since = state.now
    start_call, child.start_call = child.start_call, None
    state.move(child, "started")
    step_in(state, child)
    if start_call is not None:
        state.reply(start_call, child.path)
    supervisor = child.parent
    if supervisor.plan_run is not None:
        child_changed(state, supervisor, child)
    elif supervisor.phase is Phase.STARTING:
        first_start_done(state, child)


def ignored(state: State, child: Child) -> None:
    """Let a child whose start chose not to run rest, its spec kept unless temporary (OTP S5, G8, A2)."""
    child.begun = False
    child.after = After.REST
    state.move(child, "exit", "ignored")
    state.move(child, "completed")
    start_call, child.start_call = child.start_call, None
    if start_call is not None:
        state.reply(start_call, None)
    if start_call is None or start_call.verb is not m.Verb.RESTART_CHILD:
        state.remove_if_disposable(child)
    settle(state, child)


def start_failed(state: State, child: Child, exit: Exit, *, gone: bool) -> None:
    """Decide about a start that failed."""
    supervisor = child.parent
    _note_exit(child, exit)
    go_down(state, child, "fault", str(exit))
    if supervisor.phase is Phase.STOPPING or child.start_call is not None:
        child.after = After.REST
    elif supervisor.phase is Phase.STARTING and child.path in supervisor.outstanding:
        again = child.spec.retry_first_start and not exit.permanent
        child.after = After.RETRY if again else After.FIRST_START_FAILED
    else:
        child.after = After.RETRY
    child_ended(state, child, gone=gone)


def died(state: State, child: Child, exit: Exit, *, gone: bool) -> None:
    """Decide about a live incarnation that ended without being asked to.

    It calls off the recovery in place that the child took part in: the others cannot finish it alone.
    """
    supervisor = child.parent
    recovery = supervisor.recovery
    if recovery is not None:
        if child in recovery.members:
            supervisor.recovery = None
        else:
            recovery = None
    _note_exit(child, exit)
    _reset_backoff_if_served(state, child)
    go_down(state, child, "fault" if exit.abnormal else "exit", str(exit))
    child.after = After.REST
    if supervisor.phase is Phase.STOPPING:
        pass
    elif supervisor.plan_run is not None or _waits_for_first_starts(supervisor):
        if supervisor.plan_run is not None and child in supervisor.plan_run.members:
            child.after = After.PLAN  # absorbed: it was to be stopped anyway (OTP G9)
        else:
            child.unjudged = True
            supervisor.deferred.append((child, child.incarnation))
            child_changed(state, supervisor, child)  # a step may have waited for it to serve
    else:
        judge(state, child)
    if state.posted:
        state.post(ChildEnded(child, gone))
    else:
        child_ended(state, child, gone=gone)
    if recovery is not None:
        state.post(RecoveryLost(iter(recovery.members), exit.fault))


def _waits_for_first_starts(supervisor: Supervisor) -> bool:
    """Whether ends wait until all children have had their first start, as in OTP.

    Not under one_for_one: there an engine of a pool is restarted while others still come up.
    """
    return supervisor.phase is Phase.STARTING and supervisor.spec.strategy is not Strategy.ONE_FOR_ONE


def _note_exit(child: Child, exit: Exit) -> None:
    child.exit = exit
    child.unproductive_restarts = 0 if child.progressed else child.unproductive_restarts + 1


def _reset_backoff_if_served(state: State, child: Child) -> None:
    backoff = child.spec.backoff
    if (
        backoff is not None
        and child.up_since is not None
        and state.now - child.up_since >= backoff.reset_after
    ):
        child.attempt = 0
        child.delay = 0.0
        child.failing_since = None


def child_ended(state: State, child: Child, *, gone: bool) -> None:
    """Ask for the proof that nothing is left of a child, if it is not there yet."""
    if child.removed:
        return
    if gone:
        child_gone(state, child)
    else:
        state.out.append(m.Clean(child.path, child.incarnation))


def supervisor_ended(state: State, supervisor: Supervisor) -> None:
    """Take the end of a supervisor as the end of the child that it is."""
    owner = supervisor.owner
    if owner is None:
        return
    exit = supervisor.exit or SHUTDOWN
    if owner.configuration.leaf == "STOPPING":  # it was asked to end
        owner.exit = exit
        child_gone(state, owner)
    elif supervisor.start_failure is not None:
        start_failed(state, owner, exit, gone=True)
    else:
        died(state, owner, exit, gone=True)
