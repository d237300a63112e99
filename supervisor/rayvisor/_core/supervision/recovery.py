"""Recovery in place: an engine that reports a fault recovers by its own means before it is restarted.

The ranks of a group do so together: all of them are paused and told, and unless every one of them says in
time that it is healthy, the group is restarted. None of this counts within the intensity; it has a bound of
its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import Child, Recovery
from rayvisor._core.supervision.restarts import Restarts
from rayvisor._core.supervision.window import Window
from rayvisor.faults import Exit, ExitKind

if TYPE_CHECKING:
    from rayvisor.faults import Fault

__all__ = ["AWAIT", "RETRY", "Recoveries"]

RETRY = "retry"
"""The one instruction that vLLM's engines know today."""
AWAIT = "await"
"""Not an instruction: an operator gives it, and is waited for."""


class Recoveries(Restarts):
    """Retries in place first; what does not help goes to the strategy, as a fault of the child."""

    def _unhealthy(self, child: Child, fault: Fault | None) -> None:
        """Begin a recovery in place, or end the child if there may be none."""
        supervisor = child.parent
        recovery = supervisor.recovery
        if not self._up(child) or (recovery is not None and child.path in recovery.waiting):
            return  # it comes or goes, or is being told to recover already
        why = "" if fault is None else str(fault)
        exit_ = Exit(ExitKind.FAULT, "unhealthy", fault)
        members = [child]
        if supervisor.spec.recover_as_group:
            members = list(supervisor.children.values())
        possible = recovery is None and supervisor.group is None and all(map(self._up, members))
        self._move(child, "unhealthy", why)
        if not possible or not self._may_recover(child):
            self._died(child, exit_, gone=False)
            return
        child.exit = exit_
        timeout = child.spec.recovery_timeout
        notified = child.spec.instructed_by == "operator"
        what = f"an operator has {timeout:g} s to instruct" if notified else f"{RETRY} on"
        self._decided(child, "in_place", f"{what} {len(members)} of {len(supervisor.children)}")
        supervisor.recovery = Recovery(child, exit_, members, {member.path for member in members})
        for member in members:
            if member is not child:
                self._move(member, "unhealthy", f"{child.spec.id} of its group is faulted")
        for member in members:
            if not notified:
                self._move(member, RETRY)
            self._out.append(m.Act(member.path, member.incarnation, AWAIT if notified else RETRY, timeout))

    def _may_recover(self, child: Child) -> bool:
        limit = child.spec.recoveries
        if not limit:
            return False
        window = child.parent.recoveries.setdefault(child, Window())
        return window.add(self.now, limit, child.parent.spec.period)

    def _recovery_answered(self, child: Child, *, ok: bool, fault: Fault | None) -> bool:
        """Go on with a recovery; False when the answer belongs to none."""
        recovery = child.parent.recovery
        if recovery is None or child.path not in recovery.waiting:
            return False
        if ok:
            recovery.waiting.discard(child.path)
            if not recovery.waiting:
                child.parent.recovery = None
                for member in recovery.members:
                    if member.configuration.leaf != "RETRYING":
                        self._move(member, RETRY, "an operator has told it to")
                    self._move(member, "recovered")
        else:
            failed = recovery.failed
            exit_ = recovery.exit if recovery.exit.fault is not None else Exit(ExitKind.FAULT, fault=fault)
            self._died(failed, exit_, gone=False)
        return True

    def _died(self, child: Child, exit: Exit, *, gone: bool) -> None:  # noqa: A002 - OTP's word
        """Call off the recovery that the child took part in: the others cannot finish it alone."""
        supervisor = child.parent
        recovery = supervisor.recovery
        if recovery is None or child not in recovery.members:
            super()._died(child, exit, gone=gone)
            return
        supervisor.recovery = None
        super()._died(child, exit, gone=gone)
        for member in recovery.members:
            # Whom the strategy leaves running is neither faulted nor healthy: it ends as well.
            if (
                member.configuration.leaf in {"FAULTED", "RETRYING"}
                and not member.removed
                and supervisor.active
            ):
                lost = Exit(ExitKind.FAULT, "unrecovered", exit.fault)
                if supervisor.group is None or member not in supervisor.group.members:
                    super()._died(member, lost, gone=False)
