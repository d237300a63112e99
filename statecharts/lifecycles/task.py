"""The chart of a Ray task under a policy: attempts until one succeeds, or no more are allowed."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Chart, State, Transition, from_each

__all__ = ["TASK"]

TASK: Final = Chart(
    name="task",
    doc="A task under a retry policy.",
    states=(
        State.simple("PENDING", "submitted, waits for a worker"),
        State.simple("RUNNING", "an attempt runs, with a deadline"),
        State.simple("RETRYING", "an attempt failed; the next one waits out its delay"),
        State.simple("SUCCEEDED", "its result is there", final=True),
        State.simple("FAILED", "no attempt is left, or the error is not one to retry", final=True),
        State.simple("CANCELLED", "ended because it was asked to", final=True),
    ),
    initial="PENDING",
    flags=("CANCELLING",),
    transitions=(
        Transition("PENDING", "started", "RUNNING", doc="a worker took it"),
        *from_each(("PENDING", "RUNNING"), "succeeded", "SUCCEEDED", doc="the result won against a cancel"),
        *from_each(
            ("PENDING", "RUNNING"),
            "fault",
            "RETRYING",
            unless=("CANCELLING",),
            doc="worker lost, error to retry, or deadline",
        ),
        *from_each(
            ("PENDING", "RUNNING"),
            "fault",
            "CANCELLED",
            when=("CANCELLING",),
            doc="what is cancelled is not retried",
        ),
        Transition("RETRYING", "retry", "PENDING", doc="the delay is over"),
        *from_each(("PENDING", "RUNNING", "RETRYING"), "failed", "FAILED", doc="an error not to retry"),
        Transition("RETRYING", "exhausted", "FAILED", doc="no attempt is left"),
        *from_each(("PENDING", "RUNNING"), "cancel", None, sets=("CANCELLING",), doc="interrupt, then kill"),
        Transition("RETRYING", "cancel", "CANCELLED", doc="nothing is left to end"),
        *from_each(("PENDING", "RUNNING"), "cancelled", "CANCELLED", doc="proven to have ended"),
    ),
)
