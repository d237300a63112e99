"""The chart of an engine: a child whose process may be sick without being dead.

Beside what an [actor][statecharts.lifecycles.actor] goes through, an engine can report a fault and
wait for an instruction (FAULTED), recover in place (RETRYING), and be up with weights that are not
the wanted ones (STALE).
"""

from __future__ import annotations

from typing import Final

from statecharts.chart import Branch, Chart, Choice, Leaf, State, Transition, from_each
from statecharts.lifecycles._child import ALIVE, DEAD, RESTARTING, child_transitions

__all__ = ["ENGINE"]

_UP = ("ALIVE", "REQUESTED", "FAULTED", "STALE")
"""Every leaf that is up, but for RETRYING: while an engine recovers only its flags change."""

ENGINE: Final = Chart(
    name="engine",
    doc="An inference engine under supervision.",
    states=(
        ALIVE,
        State(
            "PAUSED",
            (
                Leaf("REQUESTED", "an operator, or the program, paused it"),
                Leaf("FAULTED", "reports a fault and waits for an instruction, with a deadline"),
                Leaf("RETRYING", "recovers in place by its own means; nothing restarts"),
                Leaf("STALE", "up, but its weights are not the wanted ones"),
            ),
            "up, and gets no work until its holds are gone",
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
            doc="the first hold in this order shows; without any it serves",
        ),
    ),
    transitions=(
        *child_transitions(forgotten=("FAULTED", "STALE"), in_place=("RETRYING",)),
        *from_each(_UP, "unhealthy", "READY", sets=("FAULTED",), doc="the engine reports a fault"),
        Transition("FAULTED", "retry", "RETRYING", doc="told to recover in place"),
        Transition("RETRYING", "recovered", "READY", clears=("FAULTED",), doc="recovered in place"),
        *from_each(("ALIVE", "PAUSED"), "stale", "READY", sets=("STALE",), doc="the wanted version moved"),
        *from_each(("RETRYING", "RESTARTING"), "stale", None, sets=("STALE",)),
        *from_each(
            ("ALIVE", "PAUSED"), "synced", "READY", clears=("STALE",), doc="the user's hook opened the gate"
        ),
        *from_each(("SUSPECT", "RETRYING", "RESTARTING"), "synced", None, clears=("STALE",)),
    ),
)
