"""Group restarts: stop the members in reverse order, perhaps wait, start them in order."""

from __future__ import annotations

from rayvisor._core.halts import Halts
from rayvisor._core.tree import After, Child, GroupRestart, Supervisor
from rayvisor.specs import Strategy

__all__ = ["Groups"]


class Groups(Halts):
    """Carries out one_for_all and rest_for_one, one group at a time under each supervisor."""

    def _group_begin(self, supervisor: Supervisor, failed: Child, delay: float) -> None:
        members = list(supervisor.children.values())
        if supervisor.spec.strategy is Strategy.REST_FOR_ONE:
            members = members[members.index(failed) :]
        for member in members:
            member.unjudged = False
            if member.restarting:  # its own retry is void: the group's start takes its place (OTP E3b)
                member.restarting = False
                self._drop_timer(member)
        failed.after = After.GROUP
        supervisor.group = group = GroupRestart(failed, members, delay)
        self._group_stop(supervisor, group)

    def _group_stop(self, supervisor: Supervisor, group: GroupRestart) -> None:
        """Stop the members one at a time, the last first."""
        if group.pumping:
            return
        group.pumping = True
        while supervisor.group is group and group.to_stop:
            member = group.to_stop[-1]
            self._group_stop_one(group, member)
            if member.begun:
                break  # `_group_step` comes back when it is gone
            group.to_stop.pop()
            self._forget_if_disposable(member)  # OTP G4
            if member in group.members and not member.forgotten:
                group.to_start.appendleft(member)
        group.pumping = False
        if supervisor.group is not group or group.to_stop:
            return
        group.starting = True
        if group.delay > 0 and group.failed in group.members:
            supervisor.group = None
            group.failed.restarting = True
            group.failed.counted = True
            self._set_timer(group.failed, group.delay)
            self._catch_up(supervisor)
        else:
            self._group_start(supervisor, group)

    def _group_stop_one(self, group: GroupRestart, member: Child) -> None:
        if member.begun and member.configuration.leaf != "STOPPING":
            self._stop(member, After.GROUP, "a sibling is restarted")
        elif member.begun and member in group.members:
            member.after = After.GROUP

    def _group_start(self, supervisor: Supervisor, group: GroupRestart) -> None:
        """Start as many members as the start limit allows; one that fails ends the pass (OTP E4, E5)."""
        if group.pumping:
            return
        group.pumping = True
        limit = supervisor.spec.start_limit
        while (
            supervisor.group is group
            and group.failure is None
            and group.to_start
            and len(group.outstanding) < limit
        ):
            member = group.to_start.popleft()
            if member in group.members and not member.forgotten:
                group.members.discard(member)
                group.outstanding.add(member.path)
                self._start(member)
        group.pumping = False
        if supervisor.group is not group or group.outstanding or (group.to_start and group.failure is None):
            return
        supervisor.group = None
        failure = group.failure
        if failure is not None and not failure.forgotten:
            self._retry(failure)
        self._catch_up(supervisor)

    def _group_step(self, supervisor: Supervisor, child: Child) -> None:
        """A child has come up or gone down: go on with the group restart, if there is one."""
        group = supervisor.group
        if group is None:
            return
        if not group.starting:
            self._group_stop(supervisor, group)
        elif child.path in group.outstanding:
            group.outstanding.discard(child.path)
            self._group_start(supervisor, group)

    def _leave_group(self, child: Child) -> None:
        """Keep a child that is terminated by hand out of the group restart under way."""
        group = child.parent.group
        if group is not None:
            group.members.discard(child)

    @staticmethod
    def _in_group(child: Child) -> bool:
        """Whether a group restart will still stop or start it."""
        group = child.parent.group
        return group is not None and child in group.members

    def _catch_up(self, supervisor: Supervisor) -> None:
        """Go on with the ends and retries that waited for the group restart, in their order."""
        while supervisor.group is None and supervisor.deferred and supervisor.active:
            child, incarnation = supervisor.deferred.popleft()
            if child.forgotten or child.incarnation != incarnation:
                continue
            if child.unjudged:
                self._judge(child)
                if child.configuration.leaf == "STOPPING" and not child.begun and not child.forgotten:
                    self._landed(child)
            elif child.restarting and not child.timer:
                self._retry_due(child)
