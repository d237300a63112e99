"""Reports what happens twice: as records to watchers, and as structured lines to the log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rayvisor import records as r
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._log import get_logger

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import Phase
    from rayvisor._core.supervision import messages as m
    from rayvisor._runtime.broadcaster import RecordBroadcaster
    from rayvisor._runtime.lifecycle import HookFailure
    from rayvisor._runtime.watchdog import BlockedPeriod
    from rayvisor.faults import Fault

__all__ = ["EventReporter"]

log = get_logger("rayvisor.supervisor")


class EventReporter:
    """Reports to watchers and to the log."""

    def __init__(self, broadcaster: RecordBroadcaster) -> None:
        self._broadcaster = broadcaster

    def fault(self, fault: Fault) -> None:
        """Report that an incarnation ended, or did not come up."""
        self._broadcaster.publish(r.FaultSeen(at=fault.at, fault=fault))
        log.error(
            "fault",
            root=str(fault.root),
            place=fault.place,
            child=fault.child,
            incarnation=fault.incarnation,
            fault_class=str(fault.fault_class),
            source=fault.source,
            signal=fault.signal,
            exit_code=fault.exit_code,
            phase=fault.phase,
            log_file=fault.log_file,
        )

    def not_recovered(self, effect: m.Act, why: str) -> None:
        """Report that an incarnation has not recovered in place; its fault has been reported before."""
        log.warning(
            "recovery.failed",
            child=effect.child,
            incarnation=effect.incarnation,
            action=effect.action,
            why=why,
        )
        self._broadcaster.publish(
            r.RecoveryFailed(
                at=time.monotonic(),
                child=effect.child,
                incarnation=effect.incarnation,
                action=effect.action,
                why=why,
            )
        )

    def unverified(self, child: str, incarnation: int, why: str) -> None:
        """Report that there is no proof that nothing of an incarnation is left."""
        log.warning("cleanup.unverified", child=child, incarnation=incarnation, why=why)
        self._broadcaster.publish(
            r.CleanupUnverified(at=time.monotonic(), child=child, incarnation=incarnation, why=why)
        )

    def late(self, child: str, incarnation: int) -> None:
        """Report that an incarnation came up after its start timeout and is ended."""
        log.warning("start.late", child=child, incarnation=incarnation, then="ended")
        self._broadcaster.publish(r.LateStart(at=time.monotonic(), child=child, incarnation=incarnation))

    def changed(self, effect: m.Changed) -> None:
        """Report a transition of a child."""
        before, after = effect.before.path, effect.after.path
        self._broadcaster.publish(
            r.StateChanged(
                at=time.monotonic(),
                child=effect.child,
                incarnation=effect.incarnation,
                event=effect.event,
                before=before,
                after=after,
                why=effect.why,
            )
        )
        log.info(
            "child.changed",
            child=effect.child,
            incarnation=effect.incarnation,
            trigger=effect.event,
            before=before,
            after=after,
        )

    def decided(self, effect: m.Decided) -> None:
        """Report a decision about a fault or an exit."""
        self._broadcaster.publish(
            r.DecisionMade(
                at=time.monotonic(),
                child=effect.child,
                incarnation=effect.incarnation,
                decision=effect.decision,
                why=effect.detail,
                restarts=effect.restarts,
                intensity=effect.intensity,
                delay=effect.delay,
            )
        )
        log.warning(
            "decided",
            child=effect.child,
            incarnation=effect.incarnation,
            decision=effect.decision,
            why=effect.detail,
            restarts=effect.restarts,
            intensity=effect.intensity,
            delay=round(effect.delay, 3),
        )

    def strategy_failed(self, effect: m.StrategyFailed) -> None:
        """Report that a user's strategy failed; only the failed child is restarted."""
        error = effect.error
        log.error(
            "strategy.failed",
            child=effect.child,
            strategy=error.strategy,
            problem=error.problem,
            traceback=error.traceback,
            then="only this child is restarted",
        )
        self._broadcaster.publish(
            r.StrategyFailed(
                at=time.monotonic(),
                child=effect.child,
                strategy=error.strategy,
                problem=error.problem,
                traceback=error.traceback,
            )
        )

    def loop_blocked(self, blocked: BlockedPeriod) -> None:
        """Report that the event loop was blocked, and runs again; the watchdog has logged it."""
        self._broadcaster.publish(
            r.EventLoopBlocked(
                at=time.monotonic(),
                seconds=blocked.seconds,
                activity=blocked.activity,
                stack=blocked.stack,
            )
        )

    def supervisor_changed(self, effect: m.SupervisorChanged) -> None:
        """Report that a supervisor came up, is being ended, or has ended."""
        why = "" if effect.exit is None else str(effect.exit)
        self._broadcaster.publish(
            r.SupervisorStateChanged(at=time.monotonic(), path=effect.path, state=effect.state, why=why)
        )
        log.info("supervisor.changed", supervisor=effect.path or "root", state=effect.state, why=why)

    def progressed(self, child: str, phase: Phase) -> None:
        """Report the progress of a start."""
        self._broadcaster.publish(
            r.StartProgressed(
                at=time.monotonic(),
                child=child,
                incarnation=phase.incarnation,
                phase=phase.phase,
                detail=phase.detail,
                elapsed=phase.elapsed,
            )
        )
        log.info(
            "start.progress",
            child=child,
            incarnation=phase.incarnation,
            phase=phase.phase,
            detail=phase.detail,
            elapsed=round(phase.elapsed, 1),
        )

    def actor_hook_failed(self, child: str, hook: str, error: str) -> None:
        """Report that an actor's pause or resume hook failed at every try; the pause itself holds."""
        self._broadcaster.publish(
            r.HookFailed(at=time.monotonic(), child=child, hook=hook, place="REQUESTED", error=error)
        )

    def hook_failed(self, failure: HookFailure) -> None:
        """Report that a user's lifecycle hook raised; the machine has logged it."""
        self._broadcaster.publish(
            r.HookFailed(
                at=time.monotonic(),
                child=getattr(failure.change.model, "child", ""),
                hook=failure.hook,
                place=failure.place,
                error=str(plain_causes(failure.error)[0]),
            )
        )
