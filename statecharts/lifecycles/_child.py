"""What the charts of engines and actors share: the states, and how they start, stop and restart."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Leaf, State, Transition, from_each

__all__ = ["ALIVE", "DEAD", "RESTARTING", "child_transitions"]

ALIVE: Final = State(
    "ALIVE",
    (
        Leaf("SERVING", "gets work"),
        Leaf("SUSPECT", "missed probes, or could not be reached: no new work, not yet condemned"),
        Leaf("STANDBY", "up, warm, not routed to"),
    ),
    "up, and nothing holds it",
)

RESTARTING: Final = State(
    "RESTARTING",
    (
        Leaf("STOPPING", "the old incarnation is being ended, with its whole process tree"),
        Leaf("BACKOFF", "down, waiting out the delay"),
        Leaf("STARTING", "a new incarnation is coming up, with a deadline"),
    ),
    "between two incarnations, or before the first",
)

DEAD: Final = State(
    "DEAD",
    (
        Leaf("COMPLETED", "ended normally, not to be restarted", final=True),
        Leaf("STOPPED", "ended because it was asked to", final=True),
        Leaf("FAILED", "a fault that no restart can cure", final=True),
        Leaf("EXHAUSTED", "its supervisor gave up", final=True),
    ),
    "down for good, unless it is started again",
)

_RUNS = ("ALIVE", "PAUSED", "STARTING")
"""Everything with an incarnation that may still come to serve."""


def child_transitions(*, forgotten: tuple[str, ...], in_place: tuple[str, ...]) -> tuple[Transition, ...]:
    """Make the transitions of anything that a supervisor starts and stops.

    Parameters
    ----------
    forgotten
        Flags that belong to an incarnation and go with it.
    in_place
        Leaves of PAUSED that asking for a pause does not leave.
    """
    # A suspect that is promoted, resumed or put on standby stays one: only `clear` lets it serve.
    keeps = (*in_place, "RESTARTING")
    keeps_suspect = ("SUSPECT", *keeps)
    through = ("ALIVE", "PAUSED")
    return (
        *from_each(("DEAD", "BACKOFF", "STOPPING"), "start", "STARTING", doc="a new incarnation"),
        Transition("STARTING", "started", "READY", doc="it is up"),
        *from_each(_RUNS, "fault", "STOPPING", clears=forgotten, doc="crash, failed start or deadline"),
        *from_each(_RUNS, "exit", "STOPPING", clears=forgotten, doc="it ended normally"),
        *from_each(_RUNS, "stop", "STOPPING", clears=forgotten, doc="it was asked to"),
        Transition("BACKOFF", "stop", "STOPPED", doc="nothing is left to end"),
        Transition("STOPPING", "stop", None, doc="it is being ended already"),
        Transition("STOPPING", "backoff", "BACKOFF", doc="proven gone, a delay is due"),
        Transition("STOPPING", "completed", "COMPLETED", doc="proven gone"),
        Transition("STOPPING", "stopped", "STOPPED", doc="proven gone"),
        *from_each(("STOPPING", "BACKOFF"), "failed", "FAILED", doc="no restart can cure it"),
        *from_each(("STOPPING", "BACKOFF"), "exhausted", "EXHAUSTED", doc="too many restarts"),
        *from_each(("SERVING", "STANDBY"), "suspect", "SUSPECT", doc="missed probes, or unreachable"),
        Transition("SUSPECT", "clear", "READY", doc="it answers again"),
        *from_each(through, "pause", "READY", sets=("REQUESTED",)),
        *from_each(keeps, "pause", None, sets=("REQUESTED",)),
        *from_each(through, "resume", "READY", clears=("REQUESTED",)),
        *from_each(keeps_suspect, "resume", None, clears=("REQUESTED",)),
        *from_each(through, "standby", "READY", sets=("STANDBY",)),
        *from_each(keeps_suspect, "standby", None, sets=("STANDBY",)),
        *from_each(through, "promote", "READY", clears=("STANDBY",)),
        *from_each(keeps_suspect, "promote", None, clears=("STANDBY",)),
    )
