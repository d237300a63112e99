"""Carrying out a strategy's plan, step by step: one plan at a time under each supervisor.

Members are stopped in reverse order and started in order; a plan may also wait, have the failed child
recover in place, or give up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.followups import Proceed, StepFailed
from rayvisor._core.supervision.nodes import After, Child, PlanRun, Supervisor
from rayvisor._core.supervision.shutdown import give_up, stop
from rayvisor._core.supervision.startup import start
from rayvisor.strategies import Escalate, InPlace, Start, Step, Stop, WaitServing

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = ["advance", "begin", "child_changed", "in_plan", "leave_plan"]

# --- beginning and end ------------------------------------------------------------------------


def begin(state: State, supervisor: Supervisor, failed: Child, steps: tuple[Step, ...], delay: float) -> None:
    """Begin a plan, and carry out as much of it as can be done now."""
    named = dict.fromkeys(each for step in steps if isinstance(step, (Stop, Start)) for each in step.ids)
    members = [supervisor.children[each] for each in named]
    for member in members:
        member.unjudged = False
        if member.restarting:  # its own retry is void: the plan's start takes its place (OTP E3b)
            member.restarting = False
            state.drop_timer(member)
    supervisor.plan_run = plan = PlanRun(failed, steps, members, delay)
    if failed in plan.members:
        failed.after = After.PLAN
        if not (isinstance(steps[0], Stop) and failed.spec.id in steps[0].ids):
            plan.steps.appendleft(Stop((failed.spec.id,)))  # at least it must be proven gone
    advance(state, supervisor)


def advance(state: State, supervisor: Supervisor) -> None:
    """Carry out as much of the plan as can be done now; called again when more can."""
    plan = supervisor.plan_run
    while plan is not None and supervisor.plan_run is plan and _step_done(state, supervisor, plan):
        if plan.failure is not None:
            _plan_failed(state, supervisor, plan, plan.failure)
        elif plan.steps:
            plan.step = plan.steps.popleft()
            _begin_step(state, supervisor, plan, plan.step)
        else:
            _plan_over(state, supervisor, plan)


def child_changed(state: State, supervisor: Supervisor, child: Child) -> None:
    """Continue the plan, if there is one, after a child has come up, gone down or moved."""
    plan = supervisor.plan_run
    if plan is not None:
        if not child.begun or child.up:
            plan.outstanding.discard(child.path)
        advance(state, supervisor)


def _plan_over(state: State, supervisor: Supervisor, plan: PlanRun) -> None:
    supervisor.plan_run = None
    for member in plan.members:
        # Stopped, and not started again by the plan: it stays down.
        waits = member.configuration.leaf == "BACKOFF" and not member.restarting
        if waits and not member.begun and not member.removed:
            state.rest(member, "the plan leaves it down")
    state.post(Proceed(supervisor))


def _plan_failed(state: State, supervisor: Supervisor, plan: PlanRun, failure: Child) -> None:
    """End the plan over a step that failed: the strategy is asked again."""
    supervisor.plan_run = None
    step = plan.step
    if not failure.removed:
        if step is not None:
            supervisor.failed_steps[failure] = step
        state.post(StepFailed(failure, isinstance(step, Start)))
    state.post(Proceed(supervisor))


# --- one step ---------------------------------------------------------------------------------


def _begin_step(state: State, supervisor: Supervisor, plan: PlanRun, step: Step) -> None:
    if isinstance(step, Stop):
        plan.to_stop = _members(supervisor, step.ids)
    elif isinstance(step, Start):
        if plan.delay > 0 and plan.failed in plan.members:
            _wait(state, supervisor, plan.failed, plan.delay)
        else:
            plan.delay = 0.0
            plan.to_start.extend(_members(supervisor, step.ids))
    elif isinstance(step, WaitServing):
        child = supervisor.children.get(step.id)
        if child is not None and child.begun and child.configuration.leaf != "STOPPING":
            state.set_timer(child, step.timeout)
    elif isinstance(step, InPlace):
        plan.acted = False
        failed = plan.failed
        if failed.up and failed.subtree is None:
            state.out.append(m.Act(failed.path, failed.incarnation, step.action, step.timeout))
        else:
            plan.failure = failed
    else:
        give_up(state, plan.failed, step.reason, After.EXHAUST)


def _step_done(state: State, supervisor: Supervisor, plan: PlanRun) -> bool:
    """Continue the present step; True when it is over."""
    step = plan.step
    if plan.failure is not None and not plan.outstanding:
        return True
    if isinstance(step, Stop):
        return _stop_members(state, plan)
    if isinstance(step, Start):
        return _start_members(state, supervisor, plan)
    if isinstance(step, WaitServing):
        return _serves(state, supervisor, plan, step)
    return not isinstance(step, (InPlace, Escalate)) or plan.acted


def _members(supervisor: Supervisor, ids: Iterable[str]) -> list[Child]:
    found = (supervisor.children.get(each) for each in ids)
    return [child for child in found if child is not None]


def _wait(state: State, supervisor: Supervisor, failed: Child, delay: float) -> None:
    """Let everything wait down (beyond OTP); when the delay is over the strategy is asked anew."""
    supervisor.plan_run = None
    failed.restarting = True
    failed.counted = True
    state.set_timer(failed, delay)
    state.post(Proceed(supervisor))


def _stop_members(state: State, plan: PlanRun) -> bool:
    """Stop the members one at a time, the last first."""
    while plan.to_stop:
        member = plan.to_stop[-1]
        if member.begun and member.configuration.leaf != "STOPPING":
            stop(state, member, After.PLAN, m.SIBLING)
        elif member.begun and member in plan.members:
            member.after = After.PLAN
        if member.begun:
            return False
        plan.to_stop.pop()
        state.remove_if_disposable(member)  # OTP G4
    return True


def _start_members(state: State, supervisor: Supervisor, plan: PlanRun) -> bool:
    """Start as many members as may come up side by side; one that fails ends the pass (OTP E4, E5)."""
    limit = supervisor.spec.max_concurrent_starts
    if isinstance(plan.step, Start) and plan.step.concurrency is not None:
        limit = plan.step.concurrency
    while plan.failure is None and plan.to_start and len(plan.outstanding) < limit:
        member = plan.to_start[0]
        if member.begun and member.configuration.leaf == "STOPPING":
            if member in plan.members:
                member.after = After.PLAN
            break  # once it is gone
        plan.to_start.popleft()
        if member not in plan.members or member.removed:
            continue
        plan.members.pop(member, None)
        if member.begun and member.up:
            continue
        plan.outstanding.add(member.path)
        if not member.begun:
            start(state, member)
            if state.posted:  # a supervisor without children is up at once
                state.post(Proceed(supervisor))
                return False
    return not plan.outstanding and (not plan.to_start or plan.failure is not None)


def _serves(state: State, supervisor: Supervisor, plan: PlanRun, step: WaitServing) -> bool:
    child = supervisor.children.get(step.id)
    if child is None or child.configuration.state == "DEAD":
        return True  # terminated by hand, or it chose not to run
    serving = child.configuration.leaf == "SERVING"
    if not serving and child.begun and child.timer and child.configuration.leaf != "STOPPING":
        return False
    if not serving:
        plan.failure = child
    if child.begun:
        state.drop_timer(child)
    return True


# --- members ----------------------------------------------------------------------------------


def leave_plan(child: Child) -> None:
    """Keep a child that is terminated by hand out of the plan under way."""
    plan = child.parent.plan_run
    if plan is not None:
        plan.members.pop(child, None)


def in_plan(child: Child) -> bool:
    """Whether the plan under way will still stop or start it."""
    plan = child.parent.plan_run
    return plan is not None and child in plan.members
