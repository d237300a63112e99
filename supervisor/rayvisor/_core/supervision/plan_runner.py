"""Carrying out a strategy's plan, step by step: one plan at a time under each supervisor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import After, Child, PlanRun, Supervisor
from rayvisor._core.supervision.shutdown import Halts
from rayvisor.strategies import Escalate, InPlace, Start, Step, Stop, WaitServing

__all__ = ["Groups"]


class Groups(Halts):
    """Stops members in reverse order, perhaps waits, starts them in order; and what else a plan says."""

    @abstractmethod
    def _ask_again(self, child: Child) -> None: ...

    # --- beginning and end ----------------------------------------------------------------------

    def _group_begin(
        self, supervisor: Supervisor, failed: Child, steps: tuple[Step, ...], delay: float
    ) -> None:
        named = dict.fromkeys(each for step in steps if isinstance(step, (Stop, Start)) for each in step.ids)
        members = [supervisor.children[each] for each in named]
        for member in members:
            member.unjudged = False
            if member.restarting:  # its own retry is void: the plan's start takes its place (OTP E3b)
                member.restarting = False
                self._drop_timer(member)
        supervisor.group = group = PlanRun(failed, steps, members, delay)
        if failed in group.members:
            failed.after = After.GROUP
            if not (isinstance(steps[0], Stop) and failed.spec.id in steps[0].ids):
                group.steps.appendleft(Stop((failed.spec.id,)))  # at least it must be proven gone
        self._group_pump(supervisor, group)

    def _group_pump(self, supervisor: Supervisor, group: PlanRun) -> None:
        """Carry out as much as can be done now; `_group_step` comes back when more can."""
        if group.pumping:
            return
        group.pumping = True
        while supervisor.group is group and self._group_done(supervisor, group):
            if supervisor.group is not group:
                break
            if group.failure is not None:
                self._group_failed(supervisor, group, group.failure)
            elif group.steps:
                group.step = group.steps.popleft()
                self._group_take(supervisor, group, group.step)
            else:
                self._group_over(supervisor, group)
        group.pumping = False

    def _group_over(self, supervisor: Supervisor, group: PlanRun) -> None:
        supervisor.group = None
        for member in group.members:
            # Stopped, and not started again by the plan: it stays down.
            waits = member.configuration.leaf == "BACKOFF" and not member.restarting
            if waits and not member.begun and not member.removed:
                self._rest(member, "the plan leaves it down")
        self._catch_up(supervisor)

    def _group_failed(self, supervisor: Supervisor, group: PlanRun, failure: Child) -> None:
        """End the plan over a step that failed: the strategy is asked again."""
        supervisor.group = None
        step = group.step
        if not failure.removed:
            if step is not None:
                supervisor.broken[failure] = step
            if isinstance(step, Start):
                self._retry(failure)
            elif not failure.unjudged and not failure.restarting:  # else it is its turn soon
                self._ask_again(failure)
        self._catch_up(supervisor)

    def _group_step(self, supervisor: Supervisor, child: Child) -> None:
        """A child has come up, gone down or moved: go on with the plan, if there is one."""
        group = supervisor.group
        if group is not None:
            if not child.begun or self._up(child):
                group.outstanding.discard(child.path)
            self._group_pump(supervisor, group)

    # --- one step ---------------------------------------------------------------------------------

    def _group_take(self, supervisor: Supervisor, group: PlanRun, step: Step) -> None:
        """Begin a step."""
        if isinstance(step, Stop):
            group.to_stop = self._members(supervisor, step.ids)
        elif isinstance(step, Start):
            if group.delay > 0 and group.failed in group.members:
                self._group_wait(supervisor, group.failed, group.delay)
            else:
                group.delay = 0.0
                group.to_start.extend(self._members(supervisor, step.ids))
        elif isinstance(step, WaitServing):
            child = supervisor.children.get(step.id)
            if child is not None and child.begun and child.configuration.leaf != "STOPPING":
                self._set_timer(child, step.timeout)
        elif isinstance(step, InPlace):
            group.acted = False
            if self._up(group.failed) and group.failed.subtree is None:
                self._out.append(
                    m.Act(group.failed.path, group.failed.incarnation, step.action, step.timeout)
                )
            else:
                group.failure = group.failed
        else:
            self._give_up(group.failed, step.reason, After.EXHAUST)

    def _group_done(self, supervisor: Supervisor, group: PlanRun) -> bool:
        """Go on with the present step; whether it is over."""
        step = group.step
        if group.failure is not None and not group.outstanding:
            return True
        if isinstance(step, Stop):
            return self._group_stop(supervisor, group)
        if isinstance(step, Start):
            return self._group_start(supervisor, group)
        if isinstance(step, WaitServing):
            return self._group_await(supervisor, group, step)
        return not isinstance(step, (InPlace, Escalate)) or group.acted

    @staticmethod
    def _members(supervisor: Supervisor, ids: Iterable[str]) -> list[Child]:
        found = (supervisor.children.get(each) for each in ids)
        return [child for child in found if child is not None]

    def _group_wait(self, supervisor: Supervisor, failed: Child, delay: float) -> None:
        """Let everything wait down (beyond OTP); when the delay is over the strategy is asked anew."""
        supervisor.group = None
        failed.restarting = True
        failed.counted = True
        self._set_timer(failed, delay)
        self._catch_up(supervisor)

    def _group_stop(self, supervisor: Supervisor, group: PlanRun) -> bool:
        """Stop the members one at a time, the last first."""
        while supervisor.group is group and group.to_stop:
            member = group.to_stop[-1]
            if member.begun and member.configuration.leaf != "STOPPING":
                self._stop(member, After.GROUP, m.SIBLING)
            elif member.begun and member in group.members:
                member.after = After.GROUP
            if member.begun:
                return False
            group.to_stop.pop()
            self._forget_if_disposable(member)  # OTP G4
        return True

    def _group_start(self, supervisor: Supervisor, group: PlanRun) -> bool:
        """Start as many members as may come up at once; one that fails ends the pass (OTP E4, E5)."""
        limit = supervisor.spec.max_concurrent_starts
        if isinstance(group.step, Start) and group.step.concurrency is not None:
            limit = group.step.concurrency
        while (
            supervisor.group is group
            and group.failure is None
            and group.to_start
            and len(group.outstanding) < limit
        ):
            member = group.to_start[0]
            if member.begun and member.configuration.leaf == "STOPPING":
                if member in group.members:
                    member.after = After.GROUP
                break  # once it is gone
            group.to_start.popleft()
            if member not in group.members or member.removed:
                continue
            group.members.pop(member, None)
            if member.begun and self._up(member):
                continue
            group.outstanding.add(member.path)
            if not member.begun:
                self._start(member)
        return not group.outstanding and (not group.to_start or group.failure is not None)

    def _group_await(self, supervisor: Supervisor, group: PlanRun, step: WaitServing) -> bool:
        child = supervisor.children.get(step.id)
        if child is None or child.configuration.state == "DEAD":
            return True  # terminated by hand, or it chose not to run
        serving = child.configuration.leaf == "SERVING"
        if not serving and child.begun and child.timer and child.configuration.leaf != "STOPPING":
            return False
        if not serving:
            group.failure = child
        if child.begun:
            self._drop_timer(child)
        return True

    # --- who is not in it -----------------------------------------------------------------------------

    def _leave_group(self, child: Child) -> None:
        """Keep a child that is terminated by hand out of the plan under way."""
        group = child.parent.group
        if group is not None:
            group.members.pop(child, None)

    @staticmethod
    def _in_group(child: Child) -> bool:
        """Whether the plan under way will still stop or start it."""
        group = child.parent.group
        return group is not None and child in group.members

    def _rest(self, child: Child, why: str) -> None:
        """Let a child that waited down stay down."""
        self._move(child, "stop", why)
        self._move(child, "stopped")

    def _catch_up(self, supervisor: Supervisor) -> None:
        """Go on with the ends and retries that waited for the plan, in their order."""
        while supervisor.group is None and supervisor.deferred and supervisor.active:
            child, incarnation = supervisor.deferred.popleft()
            if child.removed or child.incarnation != incarnation:
                continue
            if child.unjudged:
                self._judge(child)
                if child.configuration.leaf == "STOPPING" and not child.begun and not child.removed:
                    self._child_gone(child)
            elif child.restarting and not child.timer:
                self._retry_due(child)
