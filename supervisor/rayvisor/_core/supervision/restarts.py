"""Judging an end: a restart planned by the strategy, rest, or the end of the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import After, Child, Phase
from rayvisor._core.supervision.plan_runner import begin
from rayvisor._core.supervision.planning import alone, ask, by_itself, restarts
from rayvisor._core.supervision.shutdown import auto_shutdown, give_up, stop
from rayvisor._core.supervision.startup import start
from rayvisor.errors import StrategyError
from rayvisor.faults import SHUTDOWN
from rayvisor.specs import Backoff, Restart
from rayvisor.specs import backoff as backoffs
from rayvisor.strategies import Escalate, InPlace, Start, Step

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = ["count_restart", "judge", "plan_restart"]


def judge(state: State, child: Child) -> None:
    """Decide about an end: restart, rest, or the end of the supervisor."""
    child.unjudged = False
    restart = child.spec.restart
    exit = child.exit or SHUTDOWN
    if exit.restarted_by_ray:
        child.delay = 0.0
        child.after = After.RESTART
        state.decided(child, "observe", "it is brought up again by its creator")
    elif restart is Restart.TEMPORARY:
        child.after = After.REMOVE
        state.decided(child, "forget", "temporary: it is never restarted")
        auto_shutdown(state, child)
    elif exit.permanent:
        give_up(state, child, "no restart can cure the fault", After.FAIL)
    elif restart is Restart.TRANSIENT and not exit.abnormal:
        child.after = After.REMOVE if child.disposable else After.REST
        state.decided(child, "rest", "transient: it ended normally")
        auto_shutdown(state, child)
    else:
        plan_restart(state, child)


# --- the strategy -----------------------------------------------------------------------------


def plan_restart(state: State, child: Child, *, counted: bool = False) -> None:
    """Ask the strategy about a failed child, and begin its plan.

    ``counted`` says that this restart is known to be within the intensity, and has waited its delay.
    """
    supervisor = child.parent
    steps = _ask(state, child)
    first = steps[0] if steps else None
    if isinstance(first, Escalate):
        give_up(state, child, first.reason, After.EXHAUST)
        return
    starts = restarts(steps)
    if starts:
        supervisor.asks = 0
        if not counted and not count_restart(state, child):
            return
    if not counted:
        decision = "restart" if starts else "in_place" if isinstance(first, InPlace) else "rest"
        state.decided(child, decision, supervisor.spec.strategy_name)
    if alone(steps, child):
        _restart_alone(state, child)
        return
    child.restarting = False
    if not any(isinstance(step, Start) and child.spec.id in step.ids for step in steps):
        if child.configuration.leaf == "BACKOFF":
            state.rest(child, "the strategy leaves it down")
        elif not child.up:
            child.after = After.REST
    if steps:
        begin(state, supervisor, child, steps, 0.0 if counted else child.delay)


def _ask(state: State, child: Child) -> tuple[Step, ...]:
    supervisor = child.parent
    step = supervisor.failed_steps.pop(child, None) if supervisor.failed_steps else None
    if supervisor.phase is Phase.STARTING:
        return by_itself(child)  # there is no group to restart yet
    state.asking = supervisor.spec.strategy_name
    steps = ask(supervisor, child, child.exit or SHUTDOWN, step, state.now)
    state.asking = ""
    if isinstance(steps, StrategyError):
        state.out.append(m.StrategyFailed(supervisor.path, child.path, steps))
        return by_itself(child)
    return steps


def _restart_alone(state: State, child: Child) -> None:
    """Start a child again without its siblings, once it is down."""
    if child.begun and child.configuration.leaf != "STOPPING":
        stop(state, child, After.RESTART, m.AGAIN)
    elif child.begun or child.configuration.leaf == "STOPPING":
        child.after = After.RESTART
    else:
        start(state, child)


# --- intensity and backoff --------------------------------------------------------------------


def count_restart(state: State, child: Child) -> bool:
    """Count a restart; False when that was one too many and the supervisor gives up."""
    supervisor = child.parent
    spec = supervisor.spec
    within = supervisor.window.add(state.now, spec.intensity, spec.period)
    limit = child.spec.crash_loop_limit
    crash_loop = limit is not None and child.unproductive_restarts >= limit
    if crash_loop:
        why = f"{child.unproductive_restarts} incarnations in a row died before doing useful work"
    elif not within:
        why = f"{len(supervisor.window)} restarts within {spec.period:g} s, intensity is {spec.intensity}"
    else:
        if child.spec.backoff is None:
            return True
        why = _back_off(state, child, child.spec.backoff)
    if why:
        give_up(state, child, why, After.EXHAUST, final=crash_loop)
    return not why


def _back_off(state: State, child: Child, backoff: Backoff) -> str:
    """Choose the delay before the next restart; return the bound that it would break, if any."""
    if backoff.max_retries is not None and child.attempt >= backoff.max_retries:
        return f"{child.attempt} restarts in a row, backoff.max_retries is {backoff.max_retries}"
    if child.failing_since is None:
        child.failing_since = state.now
    child.delay = backoffs.delay(backoff, child.attempt, child.delay, state.random)
    if backoff.timeout is not None and state.now + child.delay - child.failing_since > backoff.timeout:
        return f"down for longer than backoff.timeout={backoff.timeout:g} s"
    child.attempt += 1
    return ""
