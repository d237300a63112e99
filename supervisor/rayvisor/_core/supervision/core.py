"""The decisions of a supervision tree, as a pure function of events: ``handle(event, now) -> effects``.

No clock, no I/O, no asyncio, no randomness but the ``random.Random`` it is given. The same core serves
the runtime, tests in virtual time, the comparison with OTP, and replay from a journal.

    >>> from random import Random
    >>> from rayvisor.specs import ChildSpec, SupervisorSpec
    >>> class Nothing:
    ...     kind = "nothing"
    >>> spec = SupervisorSpec(intensity=1, period=5.0, children=[ChildSpec(id="a", start=Nothing())])
    >>> core = Core(spec, Random(0))
    >>> [type(effect).__name__ for effect in core.handle(m.Boot(), 0.0)]
    ['SupervisorChanged', 'Changed', 'Start']
    >>> [type(effect).__name__ for effect in core.handle(m.Started("a", 1), 0.1)]
    ['Changed', 'SupervisorChanged', 'TreeUp']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from rayvisor._core.supervision import followups as f
from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.calls import call_off_restart, called, hold_next, resume_call
from rayvisor._core.supervision.endings import (
    child_gone,
    end_judged,
    proceed,
    retry_due,
    settled,
    step_failed,
)
from rayvisor._core.supervision.nodes import Phase
from rayvisor._core.supervision.outcomes import (
    came_up,
    child_ended,
    died,
    ignored,
    start_failed,
    supervisor_ended,
)
from rayvisor._core.supervision.plan_runner import child_changed
from rayvisor._core.supervision.recovery import recovery_answered, recovery_lost, unhealthy
from rayvisor._core.supervision.shutdown import halt, limit_shutdown, stop_rest, supervisor_over
from rayvisor._core.supervision.startup import boot, grow
from rayvisor._core.supervision.state import State
from rayvisor.errors import SupervisorStoppedError
from rayvisor.faults import KILLED, Exit, ExitKind
from rayvisor.strategies import InPlace

if TYPE_CHECKING:
    from random import Random

    from rayvisor._core.supervision.nodes import Child, Supervisor
    from rayvisor.specs import SupervisorSpec

__all__ = ["Core"]

_OWN = frozenset(
    {"start", "started", "fault", "exit", "stop", "stopped", "backoff", "completed", "failed", "exhausted"}
)
"""Events of the charts that only the core itself may cause: a report of one changes nothing."""


class Core:
    """A supervision tree's decisions.

    Holds the state, and dispatches events and their follow-ups to the functions that decide.

    Parameters
    ----------
    spec
        The root supervisor.
    random
        Source of jitter.
    """

    __slots__ = ("_state", "children", "root", "supervisors")

    def __init__(self, spec: SupervisorSpec, random: Random) -> None:
        self._state = state = State(spec, random)
        self.root: Supervisor = state.root
        self.children: Mapping[str, Child] = state.children
        """Children by path, to read."""
        self.supervisors: Mapping[str, Supervisor] = state.supervisors
        """Supervisors by path, to read; the root has the empty path."""

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        """Decide about one event.

        Parameters
        ----------
        event
            The event. Late, repeated and unknown events change nothing.
        now
            Seconds on a clock that never goes back.

        Returns
        -------
        list[Effect]
            What to do, in this order.
        """
        state = self._state
        state.now = max(state.now, now)
        out: list[m.Effect] = []
        state.out = out
        if state.ended:
            _after_the_end(state, event)
        else:
            _EVENTS[type(event)](state, event)
            if state.posted:
                _follow_up(state)
        return out

    @property
    def now(self) -> float:
        """The latest time given to `handle`."""
        return self._state.now

    @property
    def ended(self) -> bool:
        """Whether the tree has ended."""
        return self._state.ended

    @property
    def asking(self) -> str:
        """Name of the strategy that is being asked, else empty: it is a user's code, and may never return."""
        return self._state.asking

    def status(self, path: str) -> Child | None:
        """Find the child at ``path``, to read."""
        return self.children.get(path)


def _follow_up(state: State) -> None:
    """Handle the follow-ups of an event, those of each follow-up before the next one."""
    left: list[f.FollowUp] = []
    while state.posted or left:
        left += reversed(state.posted)
        state.posted.clear()
        event = left.pop()
        _FOLLOW_UPS[type(event)](state, event)


def _after_the_end(state: State, event: m.Event) -> None:
    if isinstance(event, m.Call):
        state.out.append(m.Reply(event.call, None, SupervisorStoppedError(event.target)))
    elif isinstance(event, m.Started):
        state.out.append(m.Kill(event.child, event.incarnation))


# --- the tree ---------------------------------------------------------------------------------


def _on_boot(state: State, _: m.Boot) -> None:
    if state.root.phase is Phase.DOWN:
        boot(state, state.root)


def _on_halt(state: State, event: m.Halt) -> None:
    reason = "" if event.reason == "shutdown" else event.reason
    if state.root.phase is Phase.DOWN:
        supervisor_over(state, state.root)  # before it came up
    else:
        halt(state, state.root, Exit(ExitKind.SHUTDOWN, reason))


# --- starts -----------------------------------------------------------------------------------


def _on_started(state: State, event: m.Started) -> None:
    child = state.live(event.child, event.incarnation)
    if child is None:
        # A late start: whatever it started must not stay.
        state.out.append(m.Kill(event.child, event.incarnation))
    elif child.configuration.leaf == "STARTING":
        came_up(state, child)


def _on_prepared(state: State, event: m.Prepared) -> None:
    child = state.live(event.child, event.incarnation)
    if child is None or child.subtree is not None:
        return
    if child.configuration.leaf == "STARTING":
        grow(state, child, event.spec)
    elif child.configuration.leaf == "STOPPING":
        child_gone(state, child)


def _on_ignored(state: State, event: m.Ignored) -> None:
    child = state.live(event.child, event.incarnation)
    if child is None:
        return
    if child.configuration.leaf == "STARTING":
        ignored(state, child)
    elif child.configuration.leaf == "STOPPING":
        child_gone(state, child)


# --- ends -------------------------------------------------------------------------------------


def _on_exited(state: State, event: m.Exited) -> None:
    if event.child or state.root.phase is Phase.DOWN:
        _on_end(state, event)
    else:
        halt(state, state.root, event.exit)


def _on_end(state: State, event: m.Exited | m.StartFailed) -> None:
    child = state.live(event.child, event.incarnation)
    if child is None:
        return
    if child.subtree is not None:
        halt(state, child.subtree, event.exit)  # a supervisor has ended when its children have
        return
    leaf = child.configuration.leaf
    if leaf == "STOPPING":
        # Asked to end, or seen to end before: one end per incarnation, repeats change nothing.
        if event.gone:
            if child.stop_requested:
                child.exit = event.exit
            child_gone(state, child)
    elif leaf == "STARTING":
        start_failed(state, child, event.exit, gone=event.gone)
    else:
        died(state, child, event.exit, gone=event.gone)


def _on_gone(state: State, event: m.Gone) -> None:
    child = state.live(event.child, event.incarnation)
    if child is not None and child.subtree is None and child.configuration.leaf == "STOPPING":
        child_gone(state, child)


# --- timers, progress, reports ----------------------------------------------------------------


def _on_timer(state: State, event: m.TimerFired) -> None:
    child = state.timers.pop(event.timer, None)
    if child is None:
        return
    child.timer = 0
    if child.subtree is not None and child.configuration.leaf == "STOPPING":
        halt(state, child.subtree, KILLED)  # it did not end in time
    else:
        retry_due(state, child)


def _on_progressed(state: State, event: m.Progressed) -> None:
    child = state.live(event.child, event.incarnation)
    if child is not None:
        child.progressed = True


def _on_reported(state: State, event: m.Reported) -> None:
    child = state.live(event.child, event.incarnation)
    if child is None or event.event in _OWN:
        return
    if event.stales is not None and event.stales != child.stales:
        return  # it was declared stale again after its gate hook had begun
    if event.event == "unhealthy":
        unhealthy(state, child, event.fault)
    else:
        state.move(child, event.event, "" if event.fault is None else str(event.fault))
        child_changed(state, child.parent, child)


def _on_acted(state: State, event: m.Acted) -> None:
    child = state.live(event.child, event.incarnation)
    if child is None or recovery_answered(state, child, ok=event.ok, fault=event.fault):
        return
    plan = child.parent.plan_run
    if plan is None or plan.failed is not child or not isinstance(plan.step, InPlace):
        return
    if event.ok:
        plan.acted = True
    else:
        if event.fault is not None:
            child.exit = Exit(ExitKind.FAULT, fault=event.fault)
        plan.failure = child
    child_changed(state, child.parent, child)


_EVENTS: Final[Mapping[type, Callable[[State, Any], None]]] = {
    m.Boot: _on_boot,
    m.Halt: _on_halt,
    m.Started: _on_started,
    m.Prepared: _on_prepared,
    m.Ignored: _on_ignored,
    m.StartFailed: _on_end,
    m.Exited: _on_exited,
    m.Gone: _on_gone,
    m.TimerFired: _on_timer,
    m.Progressed: _on_progressed,
    m.Reported: _on_reported,
    m.Acted: _on_acted,
    m.Call: called,
}

_FOLLOW_UPS: Final[Mapping[type, Callable[[State, Any], None]]] = {
    f.ChildUp: lambda state, event: came_up(state, event.child),
    f.ChildEnded: lambda state, event: child_ended(state, event.child, gone=event.gone),
    f.ChildGone: lambda state, event: child_gone(state, event.child),
    f.ChildSettled: lambda state, event: settled(state, event.child),
    f.EndJudged: lambda state, event: end_judged(state, event.child),
    f.Proceed: lambda state, event: proceed(state, event.supervisor),
    f.StopRest: stop_rest,
    f.LimitShutdown: lambda state, event: limit_shutdown(state, event.supervisor),
    f.SupervisorEnded: lambda state, event: supervisor_ended(state, event.supervisor),
    f.StepFailed: step_failed,
    f.RecoveryLost: recovery_lost,
    f.RestartCalledOff: lambda state, event: call_off_restart(state, event.supervisor),
    f.HoldNext: hold_next,
    f.CallResumed: resume_call,
}
