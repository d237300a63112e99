"""The lifecycle of a task: its state in the chart, its attempts, and whether another one follows. Pure.

Time and randomness are passed in; nothing of Ray is used here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from rayvisor._core.tasks.attempts import Attempts, Limits
from rayvisor.faults import Cause
from rayvisor.specs import TaskAttempt, TaskPolicy
from statecharts import Configuration, compile_chart
from statecharts.lifecycles import TASK

__all__ = ["Outcome", "OutcomeKind", "TaskLifecycle"]

_TABLE = compile_chart(TASK)
_TAKEN = {"SUBMITTED_TO_WORKER", "RUNNING"}
_OVER = {"FINISHED", "FAILED"}
_REPORTED_BY_WORKER = {"", "TASK_EXECUTION_EXCEPTION"}


class OutcomeKind(StrEnum):
    """How a submission ended."""

    VALUE = "value"
    ERROR = "error"
    """Its function raised."""
    SYSTEM = "system"
    """Its worker, its node or its result was lost."""
    REFUSED = "refused"
    """Ray does not run it: another attempt would be refused as well."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a submission."""

    kind: OutcomeKind
    error: BaseException | None = None
    error_type: str = ""
    causes: tuple[Cause, ...] = ()


class TaskLifecycle:
    """Lifecycle of one task.

    Parameters
    ----------
    policy
        Its policy.
    max_retries
        ``max_retries`` of the policy, with the default filled in.
    random
        Source of the jitter.
    now
        Time at which it was submitted.
    """

    def __init__(self, policy: TaskPolicy, max_retries: int, random: Random, now: float) -> None:
        self._policy = policy
        self.state: Configuration = _TABLE.initial
        self.submission = 0
        """Number of the latest submission."""
        self._outcomes: dict[int, Outcome] = {}
        self._attempts: dict[tuple[int, int], TaskAttempt] = {}
        self._tries: Attempts | None = None
        if policy.backoff is not None:
            most = sys.maxsize if max_retries < 0 else max_retries + 1
            self._tries = Attempts(Limits(max_attempts=most, backoff=policy.backoff), random, now)

    @property
    def attempts(self) -> tuple[TaskAttempt, ...]:
        """The attempts that are known so far."""
        known = sorted(self._attempts.items())
        return tuple(replace(attempt, number=number) for number, (_, attempt) in enumerate(known, 1))

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state.leaf in {"SUCCEEDED", "FAILED", "CANCELLED"}

    def submitted(self) -> int:
        """Record a submission, and return its number."""
        self._fire("retry")
        self.submission += 1
        key = (self.submission, 0)
        self._attempts[key] = TaskAttempt(number=0, state="PENDING")
        return self.submission

    def cancel(self) -> None:
        """Record that it was asked to end."""
        self._fire("cancel")

    def called_off(self) -> None:
        """Record that it was cancelled while no submission of it ran."""
        self._fire("cancel")
        self._fire("cancelled")

    def given_up(self) -> None:
        """Record that it failed for an outside reason: a dependency failed, or Ray has ended."""
        self._fire("failed")

    def observed(self, submission: int, rows: Iterable[TaskAttempt]) -> bool:
        """Record Ray's view of a submission's attempts; return whether the last one is over for Ray."""
        outcome = self._outcomes.get(submission)
        ended = over = False
        for row in sorted(rows, key=lambda row: row.number):
            key = (submission, row.number)
            known = self._attempts.get(key)
            if known is None and "CANCELLING" not in self.state.flags:
                self._fire("fault")  # Ray has begun the next attempt
                self._fire("retry")
            ended = row.state in _OVER
            # The worker's own report, with its pid, comes later than its owner's.
            over = ended and (row.worker_pid != 0 or row.error_type not in _REPORTED_BY_WORKER)
            if ended or outcome is None:
                self._attempts[key] = row
            if row.state in _TAKEN and submission == self.submission:
                self._fire("started")
        if ended and outcome is not None:
            last = max(key for key in self._attempts if key[0] == submission)
            known = self._attempts[last]
            self._attempts[last] = replace(known, causes=outcome.causes or known.causes)
        return over

    def ended(self, outcome: Outcome, now: float) -> float | None:
        """Decide what follows the end of a submission.

        Returns
        -------
        float | None
            Seconds until the next submission; None: the task has ended.
        """
        self._note(outcome)
        if outcome.kind is OutcomeKind.VALUE:
            self._fire("succeeded")
            return None
        if outcome.kind is OutcomeKind.CANCELLED:
            self._fire("cancelled")
            return None
        if "CANCELLING" in self.state.flags:
            self._fire("fault")
            return None
        error = outcome.error
        again = outcome.kind is OutcomeKind.SYSTEM or (
            outcome.kind is OutcomeKind.ERROR and error is not None and self._policy.retries(error)
        )
        if not again:
            self._fire("failed")
            return None
        self._fire("fault")
        if self._tries is not None:
            delay = self._tries.failed(f"{outcome.error_type}: {error}", now)
            if delay is not None:
                return delay
            if error is not None:
                error.add_note(self._tries.note("rayvisor.submit"))
        self._fire("exhausted")
        return None

    def _note(self, outcome: Outcome) -> None:
        """Record the exception; Ray's view of the attempts comes later, if at all."""
        self._outcomes[self.submission] = outcome
        key = max((key for key in self._attempts if key[0] == self.submission), default=(self.submission, 0))
        known = self._attempts.get(key) or TaskAttempt(number=0, state="PENDING")
        self._attempts[key] = replace(
            known,
            state="FINISHED" if outcome.kind is OutcomeKind.VALUE else "FAILED",
            error_type=known.error_type or outcome.error_type,
            causes=outcome.causes or known.causes,
            source="exception",
        )

    def _fire(self, event: str) -> None:
        after = _TABLE.step(self.state, event)
        if after is not None:
            self.state = after
