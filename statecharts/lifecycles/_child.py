"""The common part of the charts of engines and actors: the states, and how they start, stop and restart."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Leaf, State, Transition, from_each

__all__ = ["ALIVE", "DEAD", "RESTARTING", "child_transitions"]

ALIVE: Final = State(
    "ALIVE",
    (
        Leaf("SERVING", "receives work"),
        Leaf("SUSPECT", "missed probes or was unreachable: no new work until the outcome is clear"),
        Leaf("STANDBY", "up and warm, receives no requests"),
    ),
    "up, not paused",
)

RESTARTING: Final = State(
    "RESTARTING",
    (
        Leaf("STOPPING", "the old incarnation is being stopped, with its whole process tree"),
        Leaf("BACKOFF", "down, waiting for the restart delay to pass"),
        Leaf("STARTING", "a new incarnation is starting, with a timeout"),
    ),
    "between two incarnations, or before the first",
)

DEAD: Final = State(
    "DEAD",
    (
        Leaf("COMPLETED", "exited normally, not restarted", final=True),
        Leaf("STOPPED", "stopped on request", final=True),
        Leaf("FAILED", "a fault that no restart can fix", final=True),
        Leaf("EXHAUSTED", "its restarts are used up", final=True),
    ),
    "down until it is started by hand",
)

_RUNS = ("ALIVE", "PAUSED", "STARTING")
"""States with an incarnation that serves or may still come to serve."""


def child_transitions(
    *, incarnation_flags: tuple[str, ...], in_place: tuple[str, ...]
) -> tuple[Transition, ...]:
    """Create the transitions that all children have.

    Parameters
    ----------
    incarnation_flags
        Flags that belong to an incarnation and are cleared when it ends.
    in_place
        Leaves of PAUSED that a pause request does not leave.
    """
    # A suspect child that is promoted, resumed or put on standby stays suspect: only `clear` lets it serve.
    keeps = (*in_place, "RESTARTING")
    keeps_suspect = ("SUSPECT", *keeps)
    through = ("ALIVE", "PAUSED")
    return (
        *from_each(("DEAD", "BACKOFF", "STOPPING"), "start", "STARTING", doc="a new incarnation"),
        Transition("STARTING", "started", "READY", doc="the start succeeded"),
        *from_each(
            _RUNS, "fault", "STOPPING", clears=incarnation_flags, doc="crash, failed start or timeout"
        ),
        *from_each(_RUNS, "exit", "STOPPING", clears=incarnation_flags, doc="normal exit"),
        *from_each(_RUNS, "stop", "STOPPING", clears=incarnation_flags, doc="stop requested"),
        Transition("BACKOFF", "stop", "STOPPED", doc="nothing is running"),
        Transition("STOPPING", "stop", None, doc="already stopping"),
        Transition("STOPPING", "backoff", "BACKOFF", doc="confirmed gone, waits for the restart delay"),
        Transition("STOPPING", "completed", "COMPLETED", doc="confirmed gone"),
        Transition("STOPPING", "stopped", "STOPPED", doc="confirmed gone"),
        *from_each(("STOPPING", "BACKOFF"), "failed", "FAILED", doc="no restart can fix it"),
        *from_each(("STOPPING", "BACKOFF"), "exhausted", "EXHAUSTED", doc="too many restarts"),
        *from_each(("SERVING", "STANDBY"), "suspect", "SUSPECT", doc="missed probes or unreachable"),
        Transition("SUSPECT", "clear", "READY", doc="it responds again"),
        *from_each(through, "pause", "READY", sets=("REQUESTED",)),
        *from_each(keeps, "pause", None, sets=("REQUESTED",)),
        *from_each(through, "resume", "READY", clears=("REQUESTED",)),
        *from_each(keeps_suspect, "resume", None, clears=("REQUESTED",)),
        *from_each(through, "standby", "READY", sets=("STANDBY",)),
        *from_each(keeps_suspect, "standby", None, sets=("STANDBY",)),
        *from_each(through, "promote", "READY", clears=("STANDBY",)),
        *from_each(keeps_suspect, "promote", None, clears=("STANDBY",)),
    )
