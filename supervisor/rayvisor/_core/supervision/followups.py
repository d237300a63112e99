"""Internal events: the consequences of a step, handled before the next external event.

A step that reaches a part of the core above its own posts one of these. They run in the order in which
they were posted, and the follow-ups of one run before the next one. The order is that of nested calls, but
no function runs inside another run of itself. (Erlang's gen_statem calls such events ``next_event``.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rayvisor._core.supervision.messages import Call
    from rayvisor._core.supervision.nodes import Child, Supervisor
    from rayvisor.faults import Fault

__all__ = [
    "CallResumed",
    "ChildEnded",
    "ChildGone",
    "ChildSettled",
    "ChildUp",
    "EndJudged",
    "FollowUp",
    "HoldNext",
    "LimitShutdown",
    "Proceed",
    "RecoveryLost",
    "RestartCalledOff",
    "StepFailed",
    "StopRest",
    "SupervisorEnded",
]


class ChildUp(NamedTuple):
    """A child that is a supervisor has come up."""

    child: Child


class ChildEnded(NamedTuple):
    """An end is judged; ``gone`` says whether the proof that nothing is left has arrived."""

    child: Child
    gone: bool


class ChildGone(NamedTuple):
    """Nothing is left of a child."""

    child: Child


class ChildSettled(NamedTuple):
    """A child has gone down: calls that waited for this continue, then its supervisor."""

    child: Child


class EndJudged(NamedTuple):
    """An end that had waited for a plan, or for the first starts, is judged."""

    child: Child


class Proceed(NamedTuple):
    """A supervisor continues its start, its plan or its end."""

    supervisor: Supervisor


class StopRest(NamedTuple):
    """A supervisor whose children end side by side asks the remaining ones to end."""

    supervisor: Supervisor
    children: Iterator[Child]


class LimitShutdown(NamedTuple):
    """A supervisor is ending as part of another's end: its time for that begins."""

    supervisor: Supervisor


class SupervisorEnded(NamedTuple):
    """A supervisor below the root has ended, with all its children."""

    supervisor: Supervisor


class StepFailed(NamedTuple):
    """A step of a plan failed over a child; ``start`` says whether the step was to start it."""

    child: Child
    start: bool


class RecoveryLost(NamedTuple):
    """A recovery in place is called off: its remaining members can neither continue nor recover."""

    members: Iterator[Child]
    fault: Fault | None


class RestartCalledOff(NamedTuple):
    """A child that waited for its restart was terminated: siblings that were to start after it stay down."""

    supervisor: Supervisor


class HoldNext(NamedTuple):
    """A call that pauses, resumes or declares stale continues with the remaining children."""

    call: Call
    children: list[Child]
    done: Child | None
    """The child before; the children below it come next."""


class CallResumed(NamedTuple):
    """A call that waited for a child to be down is carried out."""

    call: Call


FollowUp = (
    ChildUp
    | ChildEnded
    | ChildGone
    | ChildSettled
    | EndJudged
    | Proceed
    | StopRest
    | LimitShutdown
    | SupervisorEnded
    | StepFailed
    | RecoveryLost
    | RestartCalledOff
    | HoldNext
    | CallResumed
)
