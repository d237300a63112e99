"""The chart of a supervisor: it starts its children, restarts them, and stops them."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Chart, Leaf, State, Transition, from_each

__all__ = ["SUPERVISOR"]

SUPERVISOR: Final = Chart(
    name="supervisor",
    doc="A supervisor and its children.",
    states=(
        State.simple("STARTING", "the children start, in order"),
        State(
            "RUNNING",
            (
                Leaf("STEADY", "no restart is in progress"),
                Leaf("RESTARTING", "the strategy's plan for a failed child is being carried out"),
            ),
            "calls are answered, even while children restart",
        ),
        State.simple("STOPPING", "the children stop, in reverse order"),
        State(
            "DEAD",
            (
                Leaf("COMPLETED", "its significant children have ended (auto_shutdown)", final=True),
                Leaf("STOPPED", "stopped on request", final=True),
                Leaf(
                    "FAILED", "a child failed its first start, or has a fault no restart can fix", final=True
                ),
                Leaf("EXHAUSTED", "more restarts than its intensity allows", final=True),
            ),
            "down until its parent starts it again",
        ),
    ),
    initial="STARTING",
    transitions=(
        Transition("STARTING", "started", "STEADY", doc="the last child is up"),
        Transition("STARTING", "start_failed", "STOPPING", doc="the started children are stopped"),
        Transition("STEADY", "child_failed", "RESTARTING", doc="the strategy is asked for a plan"),
        Transition("RESTARTING", "child_failed", None, doc="joins the restart in progress"),
        Transition("RESTARTING", "restored", "STEADY", doc="the plan is complete"),
        Transition("RUNNING", "gave_up", "STOPPING", doc="too many restarts, or a fault no restart can fix"),
        Transition("RUNNING", "auto_shutdown", "STOPPING", doc="the significant children have ended"),
        *from_each(("STARTING", "RUNNING"), "stop", "STOPPING", doc="stop requested"),
        Transition("STOPPING", "stop", None, doc="already stopping"),
        Transition("STOPPING", "completed", "COMPLETED", doc="the last child is gone"),
        Transition("STOPPING", "stopped", "STOPPED", doc="the last child is gone"),
        Transition("STOPPING", "failed", "FAILED", doc="the last child is gone"),
        Transition("STOPPING", "exhausted", "EXHAUSTED", doc="the last child is gone"),
        Transition("DEAD", "start", "STARTING", doc="its parent starts it again"),
    ),
)
