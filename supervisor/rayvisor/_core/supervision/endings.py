"""Consequences of the proof that nothing of a child is left; retries of starts that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.followups import ChildSettled, EndJudged, Proceed, StepFailed
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor._core.supervision.plan_runner import advance, child_changed
from rayvisor._core.supervision.restarts import count_restart, judge, plan_restart
from rayvisor._core.supervision.shutdown import first_start_failed, give_up, stop_next
from rayvisor._core.supervision.startup import first_start_done, start, start_next
from rayvisor.faults import SHUTDOWN

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = ["child_gone", "end_judged", "proceed", "retry_due", "settle", "settled", "step_failed"]


def child_gone(state: State, child: Child) -> None:
    """Continue with a child of which nothing is left."""
    child.begun = False
    state.drop_timer(child)
    after = child.after
    if after is After.RESTART:
        _restart(state, child)
    elif after is After.PLAN:
        state.move(child, "backoff")
        state.remove_if_disposable(child)
        settle(state, child)
    elif after is After.RETRY:
        plan = child.parent.plan_run
        if plan is not None and child.path in plan.outstanding:
            plan.failure = child
            child_changed(state, child.parent, child)
        else:
            _retry(state, child)
    elif after is After.REST:
        _come_down(state, child)
    else:
        _end_for_good(state, child, after)


def _end_for_good(state: State, child: Child, after: After) -> None:
    """Let a child come to its last rest: removed, failed or exhausted."""
    exit = child.exit or SHUTDOWN
    if after is After.REMOVE:
        state.move(child, "completed")
        state.remove(child)
    elif after is After.FAIL or (after is After.FIRST_START_FAILED and exit.permanent):
        state.move(child, "failed")
    else:
        state.move(child, "exhausted")
    if after is After.FIRST_START_FAILED:
        first_start_failed(state, child, exit)
    settle(state, child)


def _come_down(state: State, child: Child) -> None:
    """Let a child that was stopped, or ended normally, come to rest; answer the calls that wait for it."""
    if child.unjudged:
        # This end is judged after the plan, or the first starts, under way. Neither waits any longer for
        # the child to come up.
        _continue(state, child)
        return
    exit = child.exit
    start_call = child.start_call
    if child.stop_requested or exit is None or child.parent.phase is Phase.STOPPING:
        event = "stopped"
    elif exit.abnormal:
        event = "failed" if exit.permanent else "stopped"
    else:
        event = "completed"
    if not state.move(child, event) and state.move(child, "stop"):
        state.move(child, event)
    state.refuse_start(child, None if child.stop_requested else exit)
    if start_call is not None and start_call.verb is m.Verb.START_CHILD:
        state.remove(child)  # never saved (OTP A2)
    elif start_call is None or child.stop_requested:
        state.remove_if_disposable(child)
    settle(state, child)


# --- the supervisor continues -----------------------------------------------------------------


def settle(state: State, child: Child) -> None:
    """Continue the calls and the supervisor that waited for a child to be down, after all posted events."""
    if state.posted:
        state.post(ChildSettled(child))
    else:
        settled(state, child)


def settled(state: State, child: Child) -> None:
    """Continue the calls that waited for a child to be down; then its supervisor's start, plan or end."""
    if child.waiting:
        state.resume_calls(child)
        if state.posted:
            state.post(ChildSettled(child))
            return
    _continue(state, child)


def _continue(state: State, child: Child) -> None:
    supervisor = child.parent
    if supervisor.phase is Phase.RUNNING:
        child_changed(state, supervisor, child)
    elif supervisor.phase is Phase.STARTING:
        first_start_done(state, child)
    else:
        stop_next(state, supervisor)


def proceed(state: State, supervisor: Supervisor) -> None:
    """Continue the start, the plan or the end of a supervisor, or the ends that have waited for its plan."""
    if supervisor.phase is Phase.STARTING:
        start_next(state, supervisor)
    elif supervisor.phase is not Phase.RUNNING:
        stop_next(state, supervisor)
    elif supervisor.plan_run is not None:
        advance(state, supervisor)
    else:
        _catch_up(state, supervisor)


def _catch_up(state: State, supervisor: Supervisor) -> None:
    """Continue with the first end or retry that waited for the plan; the others follow in their order."""
    while supervisor.deferred:
        child, incarnation = supervisor.deferred.popleft()
        if child.removed or child.incarnation != incarnation:
            continue
        if child.unjudged:
            judge(state, child)
            state.post(EndJudged(child))
        elif child.restarting and not child.timer:
            retry_due(state, child)
        else:
            continue
        state.post(Proceed(supervisor))
        return


def end_judged(state: State, child: Child) -> None:
    """Carry out the decision about an end that had waited, if the child is gone already."""
    if child.configuration.leaf == "STOPPING" and not child.begun and not child.removed:
        child_gone(state, child)


# --- restarts and retries ---------------------------------------------------------------------


def _restart(state: State, child: Child) -> None:
    """Start a child again by itself: now, or after its delay."""
    if child.delay > 0:
        child.restarting = True
        child.counted = True
        state.move(child, "backoff", f"{child.delay:.3g} s")
        state.set_timer(child, child.delay)
    else:
        start(state, child)


def _retry(state: State, child: Child) -> None:
    """Try a failed restart again: OTP's message to itself, or after the backoff's delay."""
    if not child.parent.active:
        _come_down(state, child)
        return
    if child.exit is not None and child.exit.permanent:
        give_up(state, child, "no restart can cure the fault", After.FAIL)
        return
    child.counted = child.spec.backoff is not None
    # With delays, the failed attempt counts now: giving up must not wait for a delay.
    if child.counted and not count_restart(state, child):
        return
    child.restarting = True
    state.decided(child, "retry_later", "its start failed")
    state.move(child, "backoff", f"{child.delay:.3g} s")
    state.set_timer(child, child.delay if child.counted else 0.0)


def retry_due(state: State, child: Child) -> None:
    """Start again a child whose delay is over."""
    supervisor = child.parent
    if not supervisor.active or not child.restarting:
        child_changed(state, supervisor, child)  # a step waited for it to serve, and waits no longer
    elif supervisor.plan_run is not None:
        supervisor.deferred.append((child, child.incarnation))
    else:
        plan_restart(state, child, counted=child.counted)


def step_failed(state: State, failed: StepFailed) -> None:
    """Retry the start that failed within a plan, or ask the strategy about a step of another kind."""
    child = failed.child
    if failed.start:
        _retry(state, child)
    elif not child.unjudged and not child.restarting:  # otherwise its end or its retry is due anyway
        plan_restart(state, child)
