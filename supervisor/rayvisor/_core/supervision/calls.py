"""The verbs on a supervisor, with OTP's answers and errors (matrix A1 to A7, C1 to C4, D1 to D7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, NamedTuple

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor._core.supervision.startup import Boots
from rayvisor._public import shown_as
from rayvisor.errors import (
    AlreadyPresentError,
    AlreadyStartedError,
    ChildRestartingError,
    ChildRunningError,
    RayvisorError,
    SpecError,
    SupervisorStoppedError,
    TemplateError,
    UnknownChildError,
)
from rayvisor.faults import Exit
from rayvisor.specs import ChildSpec, Instance, SupervisorSpec
from statecharts import Configuration

__all__ = ["Calls", "ChildCounts", "ChildStatus"]


class ChildStatus(NamedTuple):
    """One line of which_children."""

    id: str
    path: str
    configuration: Configuration
    incarnation: int
    restarting: bool
    running: bool
    supervisor: bool
    exit: Exit | None
    """How the incarnation before ended."""


class ChildCounts(NamedTuple):
    """What count_children answers."""

    specs: int
    active: int
    supervisors: int
    workers: int


class Calls(Boots):
    """Carries calls out; each is answered exactly once, also when it has to wait for a child."""

    def _called(self, call: m.Call) -> None:
        try:
            supervisor = self.supervisors.get(call.target)
            if supervisor is None:
                raise UnknownChildError(call.target, tuple(self.supervisors))
            if not supervisor.active:
                raise SupervisorStoppedError(call.target)
            self._VERBS[call.verb](self, call, supervisor)
        except RayvisorError as error:
            self._out.append(m.Reply(call.call, None, error))

    # --- finding, refusing --------------------------------------------------------------------

    @staticmethod
    def _find(call: m.Call, supervisor: Supervisor) -> Child:
        child = supervisor.children.get(call.argument)
        if child is None:
            raise UnknownChildError(str(call.argument), tuple(supervisor.children))
        return child

    def _was_instance(self, call: m.Call, supervisor: Supervisor) -> bool:
        """Whether there was an instance of this name that is forgotten now (OTP: a dead pid)."""
        return supervisor.path_of(str(call.argument)) in self._retired_epochs

    def _must_be_down(self, call: m.Call, child: Child) -> bool:
        """Refuse a call on a child that is not down; False when the call has to wait until it is."""
        if self._up(child):
            raise ChildRunningError(child.path)
        if child.begun and child.stop_requested and child.after is After.REST and not self._in_group(child):
            child.waiting = (*child.waiting, call)
            return False
        booting = child.parent.phase is Phase.STARTING and child in child.parent.queue
        if child.begun or child.restarting or child.unjudged or booting or self._in_group(child):
            raise ChildRestartingError(child.path)
        return True

    # --- verbs that start or end a child --------------------------------------------------------

    def _start_child(self, call: m.Call, supervisor: Supervisor) -> None:
        spec = self._new_spec(call.argument, supervisor)
        known = supervisor.children.get(spec.id)
        if known is None:
            supervisor.spec.check(spec)
            child = self._adopt(supervisor, spec)
            child.start_call = call
            self._start(child)
        elif self._up(known) or known.configuration.leaf == "STARTING":
            raise AlreadyStartedError(known.path)
        elif known.disposable and known.begun:
            known.waiting = (*known.waiting, call)  # its id is free in a moment
        else:
            raise AlreadyPresentError(known.path)

    @staticmethod
    def _new_spec(argument: object, supervisor: Supervisor) -> ChildSpec:
        if not supervisor.simple:
            if isinstance(argument, ChildSpec):
                return argument
            raise SpecError("child", argument, "must be a ChildSpec; rayvisor.actor() and its like make one")
        if argument is None:
            supervisor.instances += 1
            argument = Instance(str(supervisor.instances))
        if not isinstance(argument, Instance):
            raise SpecError("child", argument, "must be an Instance, or None: the template says all else")
        template = supervisor.spec.children[0]
        start = template.start if argument.start is None else argument.start
        return replace(template, id=argument.id, start=start)

    def _terminate_child(self, call: m.Call, supervisor: Supervisor) -> None:
        child = supervisor.children.get(call.argument)
        if child is None and supervisor.simple:
            if not self._was_instance(call, supervisor):
                raise TemplateError(str(call.argument))
            self._out.append(m.Reply(call.call, None))  # it has ended already
            return
        child = self._find(call, supervisor)
        self._refuse_starter(child, None)
        child.waiting = (*child.waiting, call)
        was_restarting = child.restarting
        self._leave_group(child)
        if not child.begun and supervisor.phase is Phase.STARTING and child in supervisor.queue:
            supervisor.queue.remove(child)
        self._stop(child, After.REST, "terminate_child")
        if was_restarting and supervisor.group is None:
            # What waited for its start to succeed waits no more (OTP E3): it stays down as well.
            for sibling in supervisor.children.values():
                if sibling.configuration.leaf == "BACKOFF" and not sibling.restarting:
                    self._move(sibling, "stop", "the restart was called off")

    def _restart_child(self, call: m.Call, supervisor: Supervisor) -> None:
        if supervisor.simple:
            raise TemplateError(str(call.argument))
        child = self._find(call, supervisor)
        if self._must_be_down(call, child):
            child.start_call = call
            self._start(child)

    def _delete_child(self, call: m.Call, supervisor: Supervisor) -> None:
        if supervisor.simple:
            raise TemplateError(str(call.argument))
        child = self._find(call, supervisor)
        if self._must_be_down(call, child):
            self._forget(child)
            self._out.append(m.Reply(call.call, None))

    # --- verbs that look ------------------------------------------------------------------------

    def _which_children(self, call: m.Call, supervisor: Supervisor) -> None:
        lines = [
            ChildStatus(
                child.spec.id,
                child.path,
                child.configuration,
                child.incarnation,
                child.restarting,
                self._up(child),
                child.spec.supervisor,
                child.exit,
            )
            for child in reversed(supervisor.children.values())
        ]
        self._out.append(m.Reply(call.call, lines))

    def _count_children(self, call: m.Call, supervisor: Supervisor) -> None:
        children = supervisor.children.values()
        if supervisor.simple:
            of_supervisors = supervisor.spec.children[0].supervisor
            active = sum(not child.restarting for child in children)
            counts = ChildCounts(
                1, active, len(children) * of_supervisors, len(children) * (not of_supervisors)
            )
        else:
            supervisors = sum(child.spec.supervisor for child in children)
            active = sum(map(self._up, children))
            counts = ChildCounts(len(children), active, supervisors, len(children) - supervisors)
        self._out.append(m.Reply(call.call, counts))

    def _get_childspec(self, call: m.Call, supervisor: Supervisor) -> None:
        if supervisor.simple:
            template = supervisor.spec.children[0]
            if call.argument != template.id and not self._was_instance(call, supervisor):
                self._find(call, supervisor)
            self._out.append(m.Reply(call.call, template))
        else:
            self._out.append(m.Reply(call.call, self._find(call, supervisor).spec))

    # --- verbs that change ----------------------------------------------------------------------

    def _hold(self, call: m.Call, supervisor: Supervisor) -> None:
        """Pause, resume or declare stale one child, or (no argument) everything under a supervisor."""
        if call.argument is None:
            children = list(supervisor.children.values())
        else:
            children = [self._find(call, supervisor)]
        while children:
            child = children.pop()
            if call.verb is m.Verb.PAUSE:
                self._paused.add(child.path)
            elif call.verb is m.Verb.RESUME:
                self._paused.discard(child.path)
            if call.verb is not m.Verb.STALE or child.spec.gate is not None:
                self._move(child, call.verb.value)
            self._group_step(child.parent, child)
            if child.subtree is not None:
                children.extend(child.subtree.children.values())
        self._out.append(m.Reply(call.call, None))

    def _apply_spec(self, call: m.Call, supervisor: Supervisor) -> None:
        """Put another spec into force, as OTP's code_change does: nothing is started or ended by it."""
        spec = call.argument
        if not isinstance(spec, SupervisorSpec):
            raise SpecError("spec", spec, "must be a SupervisorSpec")
        old = supervisor.spec
        if old.strategy is not spec.strategy and (supervisor.simple or spec.template is not None):
            raise SpecError(
                "strategy", spec.strategy, f"cannot follow {old.strategy_name!r} in a living tree"
            )
        supervisor.spec = spec
        if supervisor.simple:
            template, before = spec.children[0], old.children[0]
            for child in supervisor.children.values():
                start = template.start if child.spec.start is before.start else child.spec.start
                child.spec = replace(template, id=child.spec.id, start=start)
        else:
            self._reorder(supervisor, spec)
        self._remember(supervisor)
        self._out.append(m.Reply(call.call, None))

    def _reorder(self, supervisor: Supervisor, spec: SupervisorSpec) -> None:
        """Take over new child specs; ids that are gone from the list stay, after the new ones (OTP C3)."""
        kept = supervisor.children
        supervisor.children = {}
        for child_spec in spec.children:
            child = kept.pop(child_spec.id, None)
            if child is None:
                child = self._adopt(supervisor, child_spec)
                self._move(child, "stop", "added, not started")
                self._move(child, "stopped")
            else:
                child.spec = child_spec
                supervisor.children[child_spec.id] = child
        supervisor.children.update(kept)

    @staticmethod
    def _remember(supervisor: Supervisor) -> None:
        """Let later incarnations of a supervisor have the spec it has now, whoever restarts it."""
        while (owner := supervisor.owner) is not None and isinstance(owner.spec.start, SupervisorSpec):
            owner.spec = replace(owner.spec, start=supervisor.spec)
            supervisor = owner.parent
            children = [owner.spec if spec.id == owner.spec.id else spec for spec in supervisor.spec.children]
            supervisor.spec = replace(supervisor.spec, children=children)

    _VERBS: ClassVar[dict[m.Verb, Callable[[Calls, m.Call, Supervisor], None]]] = {
        m.Verb.START_CHILD: _start_child,
        m.Verb.TERMINATE_CHILD: _terminate_child,
        m.Verb.RESTART_CHILD: _restart_child,
        m.Verb.DELETE_CHILD: _delete_child,
        m.Verb.WHICH_CHILDREN: _which_children,
        m.Verb.COUNT_CHILDREN: _count_children,
        m.Verb.GET_CHILDSPEC: _get_childspec,
        m.Verb.PAUSE: _hold,
        m.Verb.RESUME: _hold,
        m.Verb.STALE: _hold,
        m.Verb.APPLY_SPEC: _apply_spec,
    }


shown_as("rayvisor", ChildCounts, ChildStatus)
