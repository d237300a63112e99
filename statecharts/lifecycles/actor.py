"""The chart of an actor: alive, paused on request, between two incarnations, or dead."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Branch, Chart, Choice, Leaf, State
from statecharts.lifecycles._child import ALIVE, DEAD, RESTARTING, child_transitions

__all__ = ["ACTOR"]

ACTOR: Final = Chart(
    name="actor",
    doc="An actor under supervision.",
    states=(
        ALIVE,
        State(
            "PAUSED",
            (Leaf("REQUESTED", "paused by an operator or the program"),),
            "up, receives no work until its hold is cleared",
        ),
        RESTARTING,
        DEAD,
    ),
    initial="STARTING",
    flags=("REQUESTED", "STANDBY"),
    choices=(
        Choice(
            "READY",
            (Branch("REQUESTED", "REQUESTED"), Branch("STANDBY", "STANDBY")),
            otherwise="SERVING",
            doc="the first hold in this order determines the leaf; without a hold it serves",
        ),
    ),
    transitions=child_transitions(incarnation_flags=(), in_place=()),
)
