"""The chart of a supervisor: it comes up with its children, restarts them, and ends with them."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Chart, Leaf, State, Transition, from_each

__all__ = ["SUPERVISOR"]

SUPERVISOR: Final = Chart(
    name="supervisor",
    doc="A supervisor and its children.",
    states=(
        State.simple("STARTING", "the children start, in their order"),
        State(
            "RUNNING",
            (
                Leaf("STEADY", "every child is where it should be"),
                Leaf("RESTARTING", "the strategy's plan for a failed child is being carried out"),
            ),
            "calls are served, also while children restart",
        ),
        State.simple("STOPPING", "the children stop, in reverse order"),
        State(
            "DEAD",
            (
                Leaf("COMPLETED", "its significant children have ended (auto_shutdown)", final=True),
                Leaf("STOPPED", "ended because it was asked to", final=True),
                Leaf("FAILED", "a child could not be started at first, or cannot be cured", final=True),
                Leaf("EXHAUSTED", "more restarts than its intensity allows", final=True),
            ),
            "down for good, unless its parent starts it again",
        ),
    ),
    initial="STARTING",
    transitions=(
        Transition("STARTING", "started", "STEADY", doc="the last child is up"),
        Transition("STARTING", "start_failed", "STOPPING", doc="those that are up are ended again"),
        Transition("STEADY", "child_failed", "RESTARTING", doc="the strategy is asked for a plan"),
        Transition("RESTARTING", "child_failed", None, doc="joins the restart that is under way"),
        Transition("RESTARTING", "restored", "STEADY", doc="the plan is done"),
        Transition("RUNNING", "gave_up", "STOPPING", doc="too many restarts, or a fault without cure"),
        Transition("RUNNING", "auto_shutdown", "STOPPING", doc="the significant children have ended"),
        *from_each(("STARTING", "RUNNING"), "stop", "STOPPING", doc="it was asked to"),
        Transition("STOPPING", "stop", None, doc="it is being ended already"),
        Transition("STOPPING", "completed", "COMPLETED", doc="the last child is gone"),
        Transition("STOPPING", "stopped", "STOPPED", doc="the last child is gone"),
        Transition("STOPPING", "failed", "FAILED", doc="the last child is gone"),
        Transition("STOPPING", "exhausted", "EXHAUSTED", doc="the last child is gone"),
        Transition("DEAD", "start", "STARTING", doc="its parent starts it again"),
    ),
)
