"""The chart of a Ray task under a policy: attempts until one succeeds or none is left."""

from __future__ import annotations

from typing import Final

from statecharts.chart import Chart, State, Transition, from_each

__all__ = ["TASK"]

TASK: Final = Chart(
    name="task",
    doc="A task under a retry policy.",
    states=(
        State.simple("PENDING", "submitted, waits for a worker"),
        State.simple("RUNNING", "an attempt runs, with a timeout"),
        State.simple("RETRYING", "an attempt failed; the next one waits for its delay"),
        State.simple("SUCCEEDED", "its result is available", final=True),
        State.simple("FAILED", "no attempt is left, or the error is not retryable", final=True),
        State.simple("CANCELLED", "cancelled on request", final=True),
    ),
    initial="PENDING",
    flags=("CANCELLING",),
    transitions=(
        Transition("PENDING", "started", "RUNNING", doc="a worker runs it"),
        *from_each(("PENDING", "RUNNING"), "succeeded", "SUCCEEDED", doc="also if a cancel came too late"),
        *from_each(
            ("PENDING", "RUNNING"),
            "fault",
            "RETRYING",
            unless=("CANCELLING",),
            doc="worker lost, retryable error, or timeout",
        ),
        *from_each(
            ("PENDING", "RUNNING"),
            "fault",
            "CANCELLED",
            when=("CANCELLING",),
            doc="a cancelled task is not retried",
        ),
        Transition("RETRYING", "retry", "PENDING", doc="the delay is over"),
        *from_each(("PENDING", "RUNNING", "RETRYING"), "failed", "FAILED", doc="the error is not retryable"),
        Transition("RETRYING", "exhausted", "FAILED", doc="no attempt is left"),
        *from_each(("PENDING", "RUNNING"), "cancel", None, sets=("CANCELLING",), doc="interrupt, then kill"),
        Transition("RETRYING", "cancel", "CANCELLED", doc="nothing is running"),
        *from_each(("PENDING", "RUNNING"), "cancelled", "CANCELLED", doc="confirmed to have ended"),
    ),
)
