"""Recovery in place: an engine that reports a fault recovers by its own means before it is restarted.

The ranks of a group do so together: all of them are paused and instructed, and unless every one of them
reports in time that it is healthy, the group is restarted. None of this counts within the intensity; it has
a bound of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import Child, Recovery
from rayvisor._core.supervision.outcomes import died
from rayvisor._core.supervision.window import Window
from rayvisor.faults import Exit, ExitKind

if TYPE_CHECKING:
    from rayvisor._core.supervision.followups import RecoveryLost
    from rayvisor._core.supervision.state import State
    from rayvisor.faults import Fault

__all__ = ["AWAIT", "RETRY", "recovery_answered", "recovery_lost", "unhealthy"]

RETRY = "retry"
"""The one instruction that vLLM's engines know today."""
AWAIT = "await"
"""Not an instruction: the child waits for an operator to give one."""


def unhealthy(state: State, child: Child, fault: Fault | None) -> None:
    """Begin a recovery in place, or end the child if there may be none."""
    supervisor = child.parent
    recovery = supervisor.recovery
    if not child.up or (recovery is not None and child.path in recovery.waiting):
        return  # it is starting or ending, or is recovering already
    why = "" if fault is None else str(fault)
    exit_ = Exit(ExitKind.FAULT, "unhealthy", fault)
    members = [child]
    if supervisor.spec.recover_as_group:
        members = list(supervisor.children.values())
    possible = recovery is None and supervisor.plan_run is None and all(member.up for member in members)
    state.move(child, "unhealthy", why)
    if not possible or not _may_recover(state, child):
        died(state, child, exit_, gone=False)
        return
    child.exit = exit_
    timeout = child.spec.recovery_timeout
    by_operator = child.spec.instructed_by == "operator"
    what = f"an operator has {timeout:g} s to instruct" if by_operator else f"{RETRY} on"
    state.decided(child, "in_place", f"{what} {len(members)} of {len(supervisor.children)}")
    supervisor.recovery = Recovery(child, exit_, members, {member.path for member in members})
    for member in members:
        if member is not child:
            state.move(member, "unhealthy", f"{child.spec.id} of its group is faulted")
    for member in members:
        if not by_operator:
            state.move(member, RETRY)
        instruction = AWAIT if by_operator else RETRY
        state.out.append(m.Act(member.path, member.incarnation, instruction, timeout))


def _may_recover(state: State, child: Child) -> bool:
    limit = child.spec.recoveries
    if not limit:
        return False
    window = child.parent.recoveries.setdefault(child, Window())
    return window.add(state.now, limit, child.parent.spec.period)


def recovery_answered(state: State, child: Child, *, ok: bool, fault: Fault | None) -> bool:
    """Continue a recovery with a member's answer; False when the answer belongs to none."""
    recovery = child.parent.recovery
    if recovery is None or child.path not in recovery.waiting:
        return False
    if ok:
        recovery.waiting.discard(child.path)
        if not recovery.waiting:
            child.parent.recovery = None
            for member in recovery.members:
                if member.configuration.leaf != "RETRYING":
                    state.move(member, RETRY, "instructed by an operator")
                state.move(member, "recovered")
    else:
        exit_ = recovery.exit if recovery.exit.fault is not None else Exit(ExitKind.FAULT, fault=fault)
        died(state, recovery.failed, exit_, gone=False)
    return True


def recovery_lost(state: State, lost: RecoveryLost) -> None:
    """End the next member that the strategy has left running: it is neither faulted nor healthy."""
    for member in lost.members:
        supervisor = member.parent
        if (
            member.configuration.leaf in {"FAULTED", "RETRYING"}
            and not member.removed
            and supervisor.active
            and (supervisor.plan_run is None or member not in supervisor.plan_run.members)
        ):
            died(state, member, Exit(ExitKind.FAULT, "unrecovered", lost.fault), gone=False)
            state.post(lost)
            return
