"""The verbs on a supervisor, with OTP's answers and errors (matrix A1 to A7, C1 to C4, D1 to D7).

Each call is answered exactly once, also when it has to wait for a child.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.followups import CallResumed, ChildGone, HoldNext, RestartCalledOff
from rayvisor._core.supervision.nodes import After, Child, Supervisor
from rayvisor._core.supervision.plan_runner import child_changed, in_plan, leave_plan
from rayvisor._core.supervision.shutdown import stop
from rayvisor._core.supervision.startup import start
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

if TYPE_CHECKING:
    from rayvisor._core.supervision.state import State

__all__ = ["ChildCounts", "ChildStatus", "call_off_restart", "called", "hold_next", "resume_call"]


class ChildStatus(NamedTuple):
    """One child in the answer of which_children."""

    id: str
    path: str
    configuration: Configuration
    incarnation: int
    restarting: bool
    running: bool
    supervisor: bool
    exit: Exit | None
    """Exit of the incarnation before."""


class ChildCounts(NamedTuple):
    """The answer of count_children."""

    specs: int
    active: int
    supervisors: int
    workers: int


def called(state: State, call: m.Call) -> None:
    """Carry a call out."""
    try:
        supervisor = state.supervisors.get(call.target)
        if supervisor is None:
            raise UnknownChildError(call.target, tuple(state.supervisors))
        if not supervisor.active:
            raise SupervisorStoppedError(call.target)
        _VERBS[call.verb](state, call, supervisor)
    except RayvisorError as error:
        state.out.append(m.Reply(call.call, None, error))


def resume_call(state: State, resumed: CallResumed) -> None:
    """Continue a call that waited for a child to be down."""
    if resumed.call.verb is m.Verb.TERMINATE_CHILD:
        state.reply(resumed.call, None)
    else:
        called(state, resumed.call)


# --- finding, refusing ------------------------------------------------------------------------


def _find(call: m.Call, supervisor: Supervisor) -> Child:
    child = supervisor.children.get(call.argument)
    if child is None:
        raise UnknownChildError(str(call.argument), tuple(supervisor.children))
    return child


def _was_instance(state: State, call: m.Call, supervisor: Supervisor) -> bool:
    return state.was_instance(supervisor.path_of(str(call.argument)))


def _must_be_down(call: m.Call, child: Child) -> bool:
    """Refuse a call on a child that is not down; False when the call has to wait until it is."""
    if child.up:
        raise ChildRunningError(child.path)
    if child.begun and child.stop_requested and child.after is After.REST and not in_plan(child):
        child.waiting = (*child.waiting, call)
        return False
    if child.begun or child.restarting or child.unjudged or child.awaits_first_start or in_plan(child):
        raise ChildRestartingError(child.path)
    return True


# --- verbs that start or end a child ----------------------------------------------------------


def _start_child(state: State, call: m.Call, supervisor: Supervisor) -> None:
    spec = _new_spec(call.argument, supervisor)
    known = supervisor.children.get(spec.id)
    if known is None:
        supervisor.spec.check(spec)
        child = state.adopt(supervisor, spec)
        child.start_call = call
        start(state, child)
    elif known.up or known.configuration.leaf == "STARTING":
        raise AlreadyStartedError(known.path)
    elif known.disposable and known.begun:
        known.waiting = (*known.waiting, call)  # its id is free in a moment
    else:
        raise AlreadyPresentError(known.path)


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
    of_instance = template.start if argument.start is None else argument.start
    return replace(template, id=argument.id, start=of_instance)


def _terminate_child(state: State, call: m.Call, supervisor: Supervisor) -> None:
    child = supervisor.children.get(call.argument)
    if child is None and supervisor.simple:
        if not _was_instance(state, call, supervisor):
            raise TemplateError(str(call.argument))
        state.reply(call, None)  # it has ended already
        return
    child = _find(call, supervisor)
    state.refuse_start(child, None)
    child.waiting = (*child.waiting, call)
    was_restarting = child.restarting
    leave_plan(child)
    if child.begun:
        stop(state, child, After.REST, "terminate_child")
        return
    child.after = After.REST
    child.restarting = child.unjudged = False
    state.post(ChildGone(child))
    if was_restarting:
        state.post(RestartCalledOff(supervisor))


def call_off_restart(state: State, supervisor: Supervisor) -> None:
    """Leave the siblings down that waited for the start of a terminated child (OTP E3)."""
    if supervisor.plan_run is None:
        for sibling in supervisor.children.values():
            if sibling.configuration.leaf == "BACKOFF" and not sibling.restarting:
                state.move(sibling, "stop", "the restart was called off")


def _restart_child(state: State, call: m.Call, supervisor: Supervisor) -> None:
    if supervisor.simple:
        raise TemplateError(str(call.argument))
    child = _find(call, supervisor)
    if _must_be_down(call, child):
        state.refuse_start(child, None)  # an earlier start may have been called off by a plan
        child.start_call = call
        start(state, child)


def _delete_child(state: State, call: m.Call, supervisor: Supervisor) -> None:
    if supervisor.simple:
        raise TemplateError(str(call.argument))
    child = _find(call, supervisor)
    if _must_be_down(call, child):
        state.remove(child)
        state.reply(call, None)


# --- verbs that look --------------------------------------------------------------------------


def _which_children(state: State, call: m.Call, supervisor: Supervisor) -> None:
    lines = [
        ChildStatus(
            child.spec.id,
            child.path,
            child.configuration,
            child.incarnation,
            child.restarting,
            child.up,
            child.spec.supervisor,
            child.exit,
        )
        for child in reversed(supervisor.children.values())
    ]
    state.reply(call, lines)


def _count_children(state: State, call: m.Call, supervisor: Supervisor) -> None:
    children = supervisor.children.values()
    if supervisor.simple:
        of_supervisors = supervisor.spec.children[0].supervisor
        active = sum(not child.restarting for child in children)
        counts = ChildCounts(1, active, len(children) * of_supervisors, len(children) * (not of_supervisors))
    else:
        supervisors = sum(child.spec.supervisor for child in children)
        active = sum(child.up for child in children)
        counts = ChildCounts(len(children), active, supervisors, len(children) - supervisors)
    state.reply(call, counts)


def _get_childspec(state: State, call: m.Call, supervisor: Supervisor) -> None:
    if supervisor.simple:
        template = supervisor.spec.children[0]
        if call.argument != template.id and not _was_instance(state, call, supervisor):
            _find(call, supervisor)
        state.reply(call, template)
    else:
        state.reply(call, _find(call, supervisor).spec)


# --- verbs that change ------------------------------------------------------------------------


def _hold(state: State, call: m.Call, supervisor: Supervisor) -> None:
    """Pause, resume or declare stale one child, or (no argument) everything under a supervisor."""
    children = list(supervisor.children.values()) if call.argument is None else [_find(call, supervisor)]
    hold_next(state, HoldNext(call, children, None))


def hold_next(state: State, hold: HoldNext) -> None:
    """Continue with the children that are left, and with the children below those that are done."""
    call, children, done = hold
    while True:
        if done is not None and done.subtree is not None:
            children.extend(done.subtree.children.values())
        if not children:
            break
        done = children.pop()
        if call.verb is m.Verb.PAUSE:
            state.paused.add(done.path)
        elif call.verb is m.Verb.RESUME:
            state.paused.discard(done.path)
        if call.verb is not m.Verb.STALE or done.spec.gate is not None:
            state.move(done, call.verb.value)
        child_changed(state, done.parent, done)
        if state.posted:
            state.post(HoldNext(call, children, done))
            return
    state.reply(call, None)


def _apply_spec(state: State, call: m.Call, supervisor: Supervisor) -> None:
    """Put another spec into force, as OTP's code_change does; this starts and ends nothing."""
    spec = call.argument
    if not isinstance(spec, SupervisorSpec):
        raise SpecError("spec", spec, "must be a SupervisorSpec")
    old = supervisor.spec
    if old.strategy is not spec.strategy and (supervisor.simple or spec.template is not None):
        raise SpecError("strategy", spec.strategy, f"cannot follow {old.strategy_name!r} in a living tree")
    supervisor.spec = spec
    if supervisor.simple:
        template, before = spec.children[0], old.children[0]
        for child in supervisor.children.values():
            of_instance = template.start if child.spec.start is before.start else child.spec.start
            child.spec = replace(template, id=child.spec.id, start=of_instance)
    else:
        _reorder(state, supervisor, spec)
    _remember(supervisor)
    state.reply(call, None)


def _reorder(state: State, supervisor: Supervisor, spec: SupervisorSpec) -> None:
    """Take over new child specs; children that are no longer listed stay, after the new ones (OTP C3)."""
    kept = supervisor.children
    supervisor.children = {}
    for child_spec in spec.children:
        child = kept.pop(child_spec.id, None)
        if child is None:
            child = state.adopt(supervisor, child_spec)
            state.rest(child, "added, not started")
        else:
            child.spec = child_spec
            supervisor.children[child_spec.id] = child
    supervisor.children.update(kept)


def _remember(supervisor: Supervisor) -> None:
    """Give the spec that a supervisor has now to its later incarnations, whichever ancestor restarts it."""
    while (owner := supervisor.owner) is not None and isinstance(owner.spec.start, SupervisorSpec):
        owner.spec = replace(owner.spec, start=supervisor.spec)
        supervisor = owner.parent
        children = [owner.spec if spec.id == owner.spec.id else spec for spec in supervisor.spec.children]
        supervisor.spec = replace(supervisor.spec, children=children)


_VERBS: Final[Mapping[m.Verb, Callable[[State, m.Call, Supervisor], None]]] = {
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
