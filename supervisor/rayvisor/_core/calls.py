"""The verbs on a supervisor, with OTP's answers and errors (matrix A1 to A7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rayvisor._core import messages as m
from rayvisor._core.restarts import Restarts
from rayvisor._core.tree import After, Child, Phase, Supervisor
from rayvisor.errors import (
    AlreadyPresentError,
    AlreadyStartedError,
    CallError,
    ChildRestartingError,
    ChildRunningError,
    ChildStartError,
    RayvisorError,
    SpecError,
    SupervisorStoppedError,
    UnknownChildError,
)
from rayvisor.specs import ChildSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor._core.exits import Exit
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


class Calls(Restarts):
    """Carries calls out; each is answered exactly once, also when it has to wait for a child."""

    def _called(self, call: m.Call) -> None:
        verbs: dict[m.Verb, Callable[[m.Call, Supervisor], None]] = {
            m.Verb.START_CHILD: self._start_child,
            m.Verb.TERMINATE_CHILD: self._terminate_child,
            m.Verb.RESTART_CHILD: self._restart_child,
            m.Verb.DELETE_CHILD: self._delete_child,
            m.Verb.WHICH_CHILDREN: self._which_children,
            m.Verb.COUNT_CHILDREN: self._count_children,
            m.Verb.GET_CHILDSPEC: self._get_childspec,
            m.Verb.PAUSE: self._hold,
            m.Verb.RESUME: self._hold,
        }
        try:
            supervisor = self.supervisors.get(call.target)
            if supervisor is None:
                raise UnknownChildError(call.target, tuple(self.supervisors))
            if supervisor.phase is Phase.DOWN or (self.root.phase is Phase.STOPPING):
                raise SupervisorStoppedError(call.target)
            verbs[call.verb](call, supervisor)
        except RayvisorError as error:
            self._out.append(m.Reply(call.call, None, error))

    def _find(self, call: m.Call, supervisor: Supervisor) -> Child:
        child = supervisor.children.get(call.argument)
        if child is None:
            raise UnknownChildError(str(call.argument), tuple(supervisor.children))
        return child

    def _refuse_busy(self, child: Child) -> None:
        if self._up(child):
            raise ChildRunningError(child.path)
        if child.restarting or child.begun:
            raise ChildRestartingError(child.path)

    def _start_child(self, call: m.Call, supervisor: Supervisor) -> None:
        spec = call.argument
        if not isinstance(spec, ChildSpec):
            field = "child"
            raise SpecError(field, spec, "must be a ChildSpec; rayvisor.actor() and its like make one")
        known = supervisor.children.get(spec.id)
        if known is not None:
            error: type[CallError] = AlreadyStartedError if self._up(known) else AlreadyPresentError
            raise error(known.path)
        supervisor.spec.check(spec)
        child = self._adopt(supervisor, spec)
        child.calls = (call.call,)
        child.started_by_call = child.added_by_call = True
        self._start(child)

    def _terminate_child(self, call: m.Call, supervisor: Supervisor) -> None:
        child = self._find(call, supervisor)
        if child.started_by_call:
            self._answer(child, None, ChildStartError(child.path, None))
            child.started_by_call = False
        child.calls = (*child.calls, call.call)
        was_restarting = child.restarting
        self._stop(child, After.REST, "terminate_child")
        if was_restarting:
            # What waited for its start to succeed waits no more (OTP E3): it stays down as well.
            for sibling in supervisor.children.values():
                if sibling.configuration.leaf == "BACKOFF" and not sibling.restarting:
                    self._move(sibling, "stop", "the restart was called off")

    def _restart_child(self, call: m.Call, supervisor: Supervisor) -> None:
        child = self._find(call, supervisor)
        self._refuse_busy(child)
        child.calls = (call.call,)
        child.started_by_call = True
        self._start(child)

    def _delete_child(self, call: m.Call, supervisor: Supervisor) -> None:
        child = self._find(call, supervisor)
        self._refuse_busy(child)
        self._forget(child)
        self._out.append(m.Reply(call.call, None))

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
        supervisors = sum(child.spec.supervisor for child in children)
        counts = ChildCounts(
            len(children), sum(map(self._up, children)), supervisors, len(children) - supervisors
        )
        self._out.append(m.Reply(call.call, counts))

    def _get_childspec(self, call: m.Call, supervisor: Supervisor) -> None:
        self._out.append(m.Reply(call.call, self._find(call, supervisor).spec))

    def _hold(self, call: m.Call, supervisor: Supervisor) -> None:
        """Pause or resume one child, or (no argument) everything under a supervisor."""
        if call.argument is None:
            children = list(supervisor.children.values())
        else:
            children = [self._find(call, supervisor)]
        while children:
            child = children.pop()
            self._move(child, call.verb.value)
            if child.subtree is not None:
                children.extend(child.subtree.children.values())
        self._out.append(m.Reply(call.call, None))
