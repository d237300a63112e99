"""The core's upper half: what an end means for the child, its siblings and its supervisor."""

from __future__ import annotations

from collections import deque

from rayvisor._core import backoff as backoffs
from rayvisor._core import messages as m
from rayvisor._core.exits import SHUTDOWN, Exit, ExitKind
from rayvisor._core.motions import Motions
from rayvisor._core.tree import After, Child, GroupRestart, Phase, Supervisor
from rayvisor.errors import ChildStartError
from rayvisor.specs import AutoShutdown, Restart, Strategy

__all__ = ["Restarts"]


class Restarts(Motions):
    """Restart types, intensity, strategies, escalation, the start and the end of whole supervisors."""

    # --- a supervisor comes up --------------------------------------------------------------

    def _boot(self, supervisor: Supervisor) -> None:
        supervisor.phase = Phase.STARTING
        self._out.append(m.SupervisorChanged(supervisor.path, "starting"))
        for spec in supervisor.spec.children:
            self._adopt(supervisor, spec)
        supervisor.queue = deque(supervisor.children.values())
        self._boot_next(supervisor)

    def _boot_next(self, supervisor: Supervisor) -> None:
        """Start as many of the waiting children as the start limit allows."""
        if supervisor.pumping:
            return
        supervisor.pumping = True
        limit = supervisor.spec.start_limit
        while supervisor.phase is Phase.STARTING and supervisor.queue and len(supervisor.outstanding) < limit:
            child = supervisor.queue.popleft()
            if child.forgotten or child.begun:
                continue
            supervisor.outstanding.add(child.path)
            self._start(child)
        supervisor.pumping = False
        if supervisor.phase is Phase.STARTING and not supervisor.outstanding and not supervisor.queue:
            supervisor.phase = Phase.RUNNING
            self._out.append(m.SupervisorChanged(supervisor.path, "running"))
            if supervisor.owner is None:
                self._out.append(m.TreeUp())
            else:
                self._came_up(supervisor.owner)
            self._deferred(supervisor)

    def _boot_step(self, child: Child) -> None:
        """Note that a child's part in its supervisor's start is done."""
        supervisor = child.parent
        if child.path in supervisor.outstanding and supervisor.phase is Phase.STARTING:
            supervisor.outstanding.discard(child.path)
            self._boot_next(supervisor)

    # --- a child comes up -------------------------------------------------------------------

    def _came_up(self, child: Child) -> None:
        child.up_since = self.now
        child.started_by_call = child.added_by_call = False
        self._move(child, "started")
        self._answer(child, child.path)
        supervisor = child.parent
        if supervisor.group is not None:
            self._group_step(supervisor, child)
        self._boot_step(child)

    def _ignored(self, child: Child) -> None:
        """A start chose not to run: the spec stays, unless it is temporary (OTP S5, G8, A2)."""
        child.begun = False
        child.after = After.REST
        self._move(child, "exit", "ignored")
        calls, child.calls = child.calls, ()
        self._rest(child, "completed")
        for call in calls:
            self._out.append(m.Reply(call, None))
        if child.parent.group is not None:
            self._group_step(child.parent, child)
        self._boot_step(child)

    def _start_failed(self, child: Child, exit: Exit, *, gone: bool) -> None:  # noqa: A002 - OTP's word
        supervisor = child.parent
        child.exit = exit
        self._count_barren(child)
        self._move(child, "fault", str(exit))
        if supervisor.phase is Phase.STOPPING:
            child.after = After.REST
        elif child.started_by_call:
            child.after = After.REST
        elif supervisor.phase is Phase.STARTING and child.path in supervisor.outstanding:
            child.after = After.RETRY if child.spec.retry_first_start and not exit.permanent else After.BOOT_FAILED
        else:
            child.after = After.RETRY
        self._part(child, gone=gone)

    # --- a child ends -----------------------------------------------------------------------

    def _died(self, child: Child, exit: Exit, *, gone: bool) -> None:  # noqa: A002 - OTP's word
        """Go on after a live incarnation that ended without being asked to."""
        supervisor = child.parent
        child.exit = exit
        self._count_barren(child)
        if (
            child.up_since is not None
            and child.spec.backoff is not None
            and self.now - child.up_since >= child.spec.backoff.reset_after
        ):
            child.attempt = 0
            child.delay = 0.0
            child.failing_since = None
        self._move(child, "fault" if exit.abnormal else "exit", str(exit))
        child.after = After.REST
        group = supervisor.group
        if supervisor.phase is Phase.STOPPING:
            pass
        elif group is not None and not group.starting and any(member is child for member in group.to_stop):
            child.after = After.GROUP  # absorbed: it was to be stopped anyway (OTP G9)
        elif group is not None or self._in_order_of_init(supervisor):
            child.unjudged = True
            supervisor.deferred.append(child)
        else:
            self._judge(child)
        self._part(child, gone=gone)

    @staticmethod
    def _in_order_of_init(supervisor: Supervisor) -> bool:
        """Whether ends wait until all children have had their first start, as in OTP.

        Not under one_for_one: there an engine of a pool is restarted while others still come up.
        """
        return supervisor.phase is Phase.STARTING and supervisor.spec.strategy is not Strategy.ONE_FOR_ONE

    def _part(self, child: Child, *, gone: bool) -> None:
        if child.forgotten:
            return
        if gone:
            self._landed(child)
        else:
            self._out.append(m.Clean(child.path, child.incarnation))

    def _count_barren(self, child: Child) -> None:
        child.barren = 0 if child.progressed else child.barren + 1

    def _judge(self, child: Child) -> None:
        """Decide what an end means: restart, rest, or the end of the supervisor."""
        exit = child.exit  # noqa: A001 - OTP's word
        assert exit is not None  # only ends are judged
        child.unjudged = False
        restart = child.spec.restart
        if restart is Restart.TEMPORARY:
            child.after = After.FORGET
            self._decided(child, "forget", "temporary: it is never restarted")
            self._auto_shutdown(child)
        elif exit.permanent:
            self._give_up(child, "no restart can cure the fault", After.FAIL)
        elif restart is Restart.TRANSIENT and not exit.abnormal:
            child.after = After.REST
            self._decided(child, "rest", "transient: it ended normally")
            self._auto_shutdown(child)
        elif self._counted(child):
            self._restart(child)

    def _counted(self, child: Child) -> bool:
        """Count a restart; False when that was one too many and the supervisor gives up."""
        supervisor = child.parent
        spec = supervisor.spec
        limit = child.spec.no_progress
        within = supervisor.window.add(self.now, spec.intensity, spec.period)
        if limit is not None and child.barren >= limit:
            self._give_up(child, f"{child.barren} incarnations in a row died before doing useful work", After.EXHAUST)
            return False
        if not within:
            self._give_up(
                child,
                f"{len(supervisor.window)} restarts within {spec.period:g} s, intensity is {spec.intensity}",
                After.EXHAUST,
            )
            return False
        bound = child.spec.backoff
        if child.failing_since is None:
            child.failing_since = self.now
        if bound is not None and bound.attempts is not None and child.attempt >= bound.attempts:
            self._give_up(child, f"{child.attempt} restarts in a row, backoff.attempts is {bound.attempts}", After.EXHAUST)
            return False
        child.delay = 0.0 if bound is None else backoffs.delay(bound, child.attempt, child.delay, self.random)
        if (
            bound is not None
            and bound.elapsed is not None
            and self.now + child.delay - child.failing_since > bound.elapsed
        ):
            self._give_up(child, f"down for longer than backoff.elapsed={bound.elapsed:g} s", After.EXHAUST)
            return False
        child.attempt += 1
        return True

    def _restart(self, child: Child) -> None:
        """Restart what the strategy says, the failed child's delay included."""
        supervisor = child.parent
        self._decided(child, "restart", supervisor.spec.strategy.value)
        if supervisor.spec.strategy is Strategy.ONE_FOR_ONE or supervisor.phase is Phase.STARTING:
            child.after = After.RESTART
            return
        members = list(supervisor.children.values())
        if supervisor.spec.strategy is Strategy.REST_FOR_ONE:
            members = members[members.index(child) :]
        self._group_begin(supervisor, child, members, child.delay)

    def _decided(self, child: Child, decision: str, detail: str) -> None:
        supervisor = child.parent
        assert child.exit is not None  # decisions are about ends
        self._out.append(
            m.Decided(
                child.path,
                child.incarnation,
                decision,
                child.exit,
                detail,
                len(supervisor.window),
                supervisor.spec.intensity,
                child.delay,
            )
        )

    # --- nothing is left of a child -----------------------------------------------------------

    def _landed(self, child: Child) -> None:
        child.begun = False
        supervisor = child.parent
        match child.after:
            case After.RESTART:
                self._start_after(child)
            case After.RETRY:
                group = supervisor.group
                if group is not None and child.path in group.outstanding:
                    group.failure = child
                    self._group_step(supervisor, child)
                else:
                    self._retry(child)
            case After.GROUP:
                self._move(child, "backoff")
                if child.spec.restart is Restart.TEMPORARY:
                    self._forget(child)
                if supervisor.group is not None:
                    self._group_step(supervisor, child)
            case After.FORGET:
                self._rest(child, "completed")
                self._forget(child)
                self._step_of_end(child)
            case After.FAIL | After.EXHAUST as after:
                self._move(child, "failed" if after is After.FAIL else "exhausted")
                self._step_of_end(child)
            case After.BOOT_FAILED:
                exit = child.exit  # noqa: A001 - OTP's word
                assert exit is not None  # a failed start has its reason
                self._move(child, "failed" if exit.permanent else "exhausted")
                self._boot_failed(child, exit)
            case After.REST:
                self._came_down(child)

    def _came_down(self, child: Child) -> None:
        """Let a child that was stopped, or ended for good, come to rest; answer who waits for it."""
        supervisor = child.parent
        calls = child.calls
        if child.unjudged:
            return  # a group restart is under way; what its end means is decided after that
        exit = child.exit  # noqa: A001 - OTP's word
        if calls and child.started_by_call and exit is not None:
            child.calls = ()
            child.started_by_call = False
            self._rest(child, "failed" if exit.permanent else "stopped")
            if child.added_by_call:
                self._forget(child)
            for call in calls:
                self._out.append(m.Reply(call, None, ChildStartError(child.path, exit.fault)))
        else:
            normal = exit is not None and not exit.abnormal and supervisor.phase is not Phase.STOPPING
            self._rest(child, "completed" if normal and not calls else "stopped")
            self._answer(child, None)
        if supervisor.group is not None:
            self._group_step(supervisor, child)
        self._step_of_end(child)
        self._boot_step(child)

    def _start_after(self, child: Child) -> None:
        if child.delay > 0:
            child.restarting = True
            child.counted = True
            self._move(child, "backoff", f"{child.delay:.3g} s")
            self._set_timer(child, child.delay)
        else:
            self._start(child)

    def _retry(self, child: Child) -> None:
        """Try a failed restart again: OTP's message to itself, or after the backoff's delay."""
        if not self._active(child.parent):
            self._came_down(child)
            return
        assert child.exit is not None  # a failed start has its reason
        if child.exit.permanent:
            self._give_up(child, "no restart can cure the fault", After.FAIL)
            self._landed(child)
            return
        child.counted = False
        if child.spec.backoff is not None:
            # With delays, the failed attempt counts now: giving up must not wait for a delay.
            if not self._counted(child):
                self._landed(child)
                return
            child.counted = True
        child.restarting = True
        self._decided(child, "retry_later", "its start failed")
        self._move(child, "backoff", f"{child.delay:.3g} s")
        self._set_timer(child, child.delay if child.counted else 0.0)

    def _timer_due(self, child: Child) -> None:
        supervisor = child.parent
        if not self._active(supervisor) or not child.restarting:
            return
        if not child.counted and not self._counted(child):
            self._landed(child)
            return
        child.restarting = False
        if supervisor.spec.strategy is Strategy.ONE_FOR_ONE or supervisor.phase is Phase.STARTING:
            self._start(child)
            return
        members = list(supervisor.children.values())
        if supervisor.spec.strategy is Strategy.REST_FOR_ONE:
            members = members[members.index(child) :]
        self._group_begin(supervisor, child, members, 0.0)

    # --- group restarts -----------------------------------------------------------------------

    def _group_begin(self, supervisor: Supervisor, failed: Child, members: list[Child], delay: float) -> None:
        supervisor.group = group = GroupRestart(failed, members, delay)
        for member in members:
            member.unjudged = False
            if member.restarting:  # its own retry is void: the group's start takes its place (OTP E3b)
                member.restarting = False
                self._drop_timer(member)
        failed.after = After.GROUP
        self._group_stop(supervisor, group)

    def _group_stop(self, supervisor: Supervisor, group: GroupRestart) -> None:
        """Stop the members one at a time, the last first."""
        while supervisor.group is group and group.to_stop:
            member = group.to_stop[-1]
            if member.forgotten or not member.begun:
                group.to_stop.pop()
                if not member.forgotten:
                    if member.spec.restart is Restart.TEMPORARY and member is not group.failed:
                        self._forget(member)
                    else:
                        group.to_start.appendleft(member)
                continue
            if member.configuration.leaf == "STOPPING":
                member.after = After.GROUP
                return  # `_group_step` comes back when it is gone
            self._stop(member, After.GROUP, "a sibling is restarted")
            if member.begun:
                return
        if supervisor.group is not group:
            return
        if group.delay > 0:
            failed = group.failed
            supervisor.group = None
            failed.restarting = True
            failed.counted = True
            self._set_timer(failed, group.delay)
            self._deferred(supervisor)
            return
        group.starting = True
        self._group_start(supervisor, group)

    def _group_start(self, supervisor: Supervisor, group: GroupRestart) -> None:
        if supervisor.pumping:
            return
        supervisor.pumping = True
        limit = supervisor.spec.start_limit
        while (
            supervisor.group is group
            and group.failure is None
            and group.to_start
            and len(group.outstanding) < limit
        ):
            member = group.to_start.popleft()
            if member.forgotten or member.begun:
                continue
            group.outstanding.add(member.path)
            self._start(member)
        supervisor.pumping = False
        if supervisor.group is not group or group.outstanding or (group.to_start and group.failure is None):
            return
        supervisor.group = None
        failure = group.failure
        if failure is not None and not failure.forgotten:
            self._retry(failure)
        self._deferred(supervisor)

    def _group_step(self, supervisor: Supervisor, child: Child) -> None:
        """A member has come up or gone down: go on with the group."""
        group = supervisor.group
        if group is None:
            return
        if not group.starting:
            self._group_stop(supervisor, group)
        elif child.path in group.outstanding:
            group.outstanding.discard(child.path)
            self._group_start(supervisor, group)

    def _deferred(self, supervisor: Supervisor) -> None:
        """Judge the ends that came in while the group was busy, in order of death."""
        while supervisor.group is None and supervisor.deferred and self._active(supervisor):
            child = supervisor.deferred.popleft()
            if child.forgotten or not child.unjudged:
                continue
            self._judge(child)
            if child.configuration.leaf == "STOPPING" and not child.begun and not child.forgotten:
                self._landed(child)

    # --- automatic shutdown, giving up, the end -----------------------------------------------

    def _auto_shutdown(self, child: Child) -> None:
        """End the supervisor if the end of a significant child says so (OTP U1, U2)."""
        supervisor = child.parent
        rule = supervisor.spec.auto_shutdown
        if not child.spec.significant or rule is AutoShutdown.NEVER:
            return
        if rule is AutoShutdown.ALL_SIGNIFICANT and any(
            other is not child and other.spec.significant and (other.begun or other.restarting)
            for other in supervisor.children.values()
        ):
            return
        self._halt(supervisor, SHUTDOWN)

    def _give_up(self, child: Child, why: str, after: After) -> None:
        supervisor = child.parent
        child.after = after
        child.restarting = False
        self._drop_timer(child)
        self._decided(child, "give_up" if after is After.EXHAUST else "fail", why)
        exit = child.exit  # noqa: A001 - OTP's word
        assert exit is not None  # giving up is about an end
        below = child.subtree
        supervisor.gave_up = why if below is None or not below.gave_up else below.gave_up
        supervisor.origin = supervisor.path if below is None or not below.gave_up else below.origin
        if supervisor.phase is Phase.STARTING:
            supervisor.boot_failure = child
        self._halt(supervisor, Exit(ExitKind.SHUTDOWN, fault=exit.fault))

    def _boot_failed(self, child: Child, exit: Exit) -> None:  # noqa: A002 - OTP's word
        supervisor = child.parent
        supervisor.boot_failure = child
        below = child.subtree
        supervisor.origin = child.path if below is None or not below.origin else below.origin
        self._halt(supervisor, Exit(ExitKind.FAULT, "failed_to_start_child", exit.fault))

    def _halt(self, supervisor: Supervisor, exit: Exit) -> None:  # noqa: A002 - OTP's word
        """Stop a supervisor's children in reverse order; `_over` follows when all are gone."""
        if supervisor.phase in {Phase.STOPPING, Phase.DOWN}:
            return
        supervisor.phase = Phase.STOPPING
        supervisor.exit = exit
        supervisor.group = None
        supervisor.deferred.clear()
        supervisor.outstanding.clear()
        supervisor.queue = deque(supervisor.children.values())
        self._out.append(m.SupervisorChanged(supervisor.path, "stopping", exit))
        self._halt_next(supervisor)

    def _halt_next(self, supervisor: Supervisor) -> None:
        while supervisor.queue and supervisor.phase is Phase.STOPPING:
            child = supervisor.queue[-1]
            if child.forgotten:
                supervisor.queue.pop()
                continue
            if not child.begun:
                supervisor.queue.pop()
                self._drop_timer(child)
                child.restarting = False
                self._rest_in_place(child)
                continue
            if child.configuration.leaf == "STOPPING":
                child.unjudged = False
                if child.after not in {After.FAIL, After.EXHAUST, After.FORGET}:
                    child.after = After.REST
                return  # `_step_of_end` comes back when it is gone
            self._stop(child, After.REST)
            if child.begun:
                return
        if not supervisor.queue and supervisor.phase is Phase.STOPPING:
            self._over(supervisor)

    def _rest_in_place(self, child: Child) -> None:
        """A child that is down while its supervisor ends keeps its leaf, unless it waited to start."""
        if child.after in {After.EXHAUST, After.FAIL}:
            self._move(child, "exhausted" if child.after is After.EXHAUST else "failed")
        elif child.configuration.state == "RESTARTING":
            self._move(child, "stop")
            self._move(child, "stopped")
        self._answer(child, None)

    def _step_of_end(self, child: Child) -> None:
        """A child is down: go on with its supervisor's end, if that is under way."""
        if child.parent.phase is Phase.STOPPING:
            self._halt_next(child.parent)

    def _over(self, supervisor: Supervisor) -> None:
        """All children are gone: the supervisor itself ends."""
        supervisor.phase = Phase.DOWN
        exit = supervisor.exit  # noqa: A001 - OTP's word
        assert exit is not None  # _halt set it
        self._out.append(m.SupervisorChanged(supervisor.path, "ended", exit))
        owner = supervisor.owner
        if owner is None:
            self.ended = True
            started = supervisor.boot_failure is None
            origin = supervisor.origin
            self._out.append(m.TreeEnded(exit, supervisor.gave_up, origin, started))
            return
        leaf = owner.configuration.leaf
        if leaf == "STOPPING":  # it was asked to end
            self._landed(owner)
        elif supervisor.boot_failure is not None:
            self._start_failed(owner, exit, gone=True)
        else:
            self._died(owner, exit, gone=True)
