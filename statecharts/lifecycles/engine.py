"""The chart of an engine: a child whose process may be unhealthy without being dead.

Beside the states of an [actor][statecharts.lifecycles.actor], an engine can report a fault and wait for an
instruction (FAULTED), recover in place (RETRYING), and be up with out-of-date weights (STALE).
"""

from __future__ import annotations

from typing import Final

from statecharts.chart import Branch, Chart, Choice, Leaf, State, Transition, from_each
from statecharts.lifecycles._child import ALIVE, DEAD, RESTARTING, child_transitions

__all__ = ["ENGINE"]

_UP = ("ALIVE", "REQUESTED", "FAULTED", "STALE")
"""Every state that is up, except RETRYING: while an engine recovers, only its flags change."""

ENGINE: Final = Chart(
    name="engine",
    doc="An inference engine under supervision.",
    states=(
        ALIVE,
        State(
            "PAUSED",
            (
                Leaf("REQUESTED", "paused by an operator or the program"),
                Leaf("FAULTED", "reported a fault and waits for an instruction, with a timeout"),
                Leaf("RETRYING", "recovers in place by its own means; nothing restarts"),
                Leaf("STALE", "up, but its weights are out of date"),
            ),
            "up, receives no work until its holds are cleared",
        ),
        RESTARTING,
        DEAD,
    ),
    initial="STARTING",
    flags=("FAULTED", "STALE", "REQUESTED", "STANDBY"),
    choices=(
        Choice(
            "READY",
            (
                Branch("FAULTED", "FAULTED"),
                Branch("STALE", "STALE"),
                Branch("REQUESTED", "REQUESTED"),
                Branch("STANDBY", "STANDBY"),
            ),
            otherwise="SERVING",
            doc="the first hold in this order determines the leaf; without a hold it serves",
        ),
    ),
    transitions=(
        *child_transitions(incarnation_flags=("FAULTED", "STALE"), in_place=("RETRYING",)),
        *from_each(_UP, "unhealthy", "READY", sets=("FAULTED",), doc="the engine reports a fault"),
        Transition("FAULTED", "retry", "RETRYING", doc="instructed to recover in place"),
        Transition("RETRYING", "recovered", "READY", clears=("FAULTED",), doc="recovered in place"),
        *from_each(("ALIVE", "PAUSED"), "stale", "READY", sets=("STALE",), doc="its weights are out of date"),
        *from_each(("RETRYING", "RESTARTING"), "stale", None, sets=("STALE",)),
        *from_each(
            ("ALIVE", "PAUSED"), "synced", "READY", clears=("STALE",), doc="the user's gate hook succeeded"
        ),
        *from_each(("SUSPECT", "RETRYING", "RESTARTING"), "synced", None, clears=("STALE",)),
    ),
)
