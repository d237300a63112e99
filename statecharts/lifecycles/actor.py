"""The chart of an actor: up, paused by request, between two incarnations, or dead."""

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
            (Leaf("REQUESTED", "an operator, or the program, paused it"),),
            "up, and gets no work until its hold is gone",
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
            doc="the first hold in this order shows; without any it serves",
        ),
    ),
    transitions=child_transitions(forgotten=(), in_place=()),
)
