"""The life of a task, decided without Ray and without a clock."""

from __future__ import annotations

from random import Random

import pytest

import rayvisor as rv
from rayvisor._core.tasks.lifecycle import Outcome, OutcomeKind, TaskLifecycle

SLOW = rv.Backoff(initial=1.0, maximum=4.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
CRASH = Outcome(OutcomeKind.SYSTEM, RuntimeError("crash"), "WORKER_DIED", (rv.Cause("Crash", ""),))
VALUE = Outcome(OutcomeKind.VALUE)
CANCELLED = Outcome(OutcomeKind.CANCELLED, error_type="TASK_CANCELLED")


def life(max_retries: int = 3, backoff: rv.Backoff | None = SLOW, **values: object) -> TaskLifecycle:
    policy = rv.TaskPolicy(backoff=backoff, **values)  # type: ignore[arg-type]
    begun = TaskLifecycle(policy, max_retries, Random(1), 0.0)
    begun.submitted()
    return begun


def row(number: int, state: str, error_type: str = "") -> rv.TaskAttempt:
    return rv.TaskAttempt(number=number, state=state, error_type=error_type, worker_pid=1, source="ray")


def error(kind: type[Exception]) -> Outcome:
    return Outcome(OutcomeKind.ERROR, kind("x"), "TASK_EXECUTION_EXCEPTION", (rv.Cause(kind.__name__, "x"),))


def test_crashes_are_retried_with_growing_delays_until_no_attempt_is_left() -> None:
    task = life(max_retries=3)
    for delay in (1.0, 2.0, 4.0):
        assert task.ended(CRASH, 0.0) == delay
        assert task.state.path == "RETRYING"
        task.submitted()
        assert task.state.path == "PENDING"
    assert task.ended(CRASH, 0.0) is None
    assert task.state.path == "FAILED"
    assert [attempt.number for attempt in task.attempts] == [1, 2, 3, 4]


def test_retries_without_end_have_no_end() -> None:
    task = life(max_retries=-1)
    for _ in range(100):
        assert task.ended(CRASH, 0.0) is not None
        task.submitted()


def test_without_a_backoff_what_ray_gave_up_is_over() -> None:
    task = life(max_retries=3, backoff=None)
    assert task.ended(CRASH, 0.0) is None
    assert task.state.path == "FAILED"


@pytest.mark.parametrize(
    ("kinds", "again"), [(False, False), (True, True), ((KeyError,), True), ((OSError,), False)]
)
def test_an_error_is_retried_where_the_policy_names_it(
    kinds: bool | tuple[type[Exception], ...],  # noqa: FBT001 - the policy's own
    again: bool,  # noqa: FBT001 - what is expected
) -> None:
    task = life(retry_exceptions=kinds)
    assert (task.ended(error(KeyError), 0.0) is not None) is again


def test_what_ray_refuses_is_not_tried_again() -> None:
    task = life(retry_exceptions=True)
    assert task.ended(Outcome(OutcomeKind.REFUSED, RuntimeError("no such resource")), 0.0) is None
    assert task.state.path == "FAILED"


@pytest.mark.parametrize("outcome", [CANCELLED, CRASH, error(KeyError)])
def test_what_was_cancelled_is_not_retried_however_it_ends(outcome: Outcome) -> None:
    task = life(retry_exceptions=True)
    task.observed(1, [row(0, "RUNNING")])
    task.cancel()
    assert task.ended(outcome, 0.0) is None
    assert task.state.leaf == "CANCELLED"


def test_a_result_wins_against_a_cancel() -> None:
    task = life()
    task.cancel()
    assert task.ended(VALUE, 0.0) is None
    assert task.state.leaf == "SUCCEEDED"


def test_a_task_that_waits_out_a_delay_or_was_never_submitted_is_called_off_at_once() -> None:
    task = life()
    assert task.ended(CRASH, 0.0) == 1.0
    task.called_off()
    assert task.state.leaf == "CANCELLED"
    fresh = TaskLifecycle(rv.TaskPolicy(), 3, Random(1), 0.0)
    fresh.called_off()
    assert (fresh.state.leaf, fresh.attempts) == ("CANCELLED", ())


def test_rays_own_retries_are_seen_in_the_clusters_state() -> None:
    task = life(backoff=None)
    task.observed(1, [row(0, "RUNNING")])
    assert task.state.path == "RUNNING"
    task.observed(1, [row(0, "FAILED", "WORKER_DIED"), row(1, "PENDING_NODE_ASSIGNMENT")])
    assert task.state.path == "PENDING"
    task.observed(1, [row(0, "FAILED", "WORKER_DIED"), row(1, "RUNNING")])
    assert task.state.path == "RUNNING"
    assert task.ended(VALUE, 0.0) is None
    assert not task.observed(1, [row(0, "FAILED", "WORKER_DIED"), row(1, "RUNNING")])  # it is behind
    assert [attempt.state for attempt in task.attempts] == ["FAILED", "FINISHED"]
    assert task.observed(1, [row(0, "FAILED", "WORKER_DIED"), row(1, "FINISHED")])
    assert [attempt.source for attempt in task.attempts] == ["ray", "ray"]


def test_an_attempt_is_told_in_full_once_its_worker_has_been_heard() -> None:
    task = life()
    task.ended(VALUE, 0.0)
    assert not task.observed(1, [rv.TaskAttempt(number=0, state="FINISHED", source="ray")])
    lost = rv.TaskAttempt(number=0, state="FAILED", error_type="WORKER_DIED", source="ray")
    assert task.observed(1, [lost])  # of a lost worker nothing more is heard


def test_what_was_raised_belongs_to_the_last_attempt_however_late_ray_tells_of_the_others() -> None:
    task = life(backoff=None)
    task.ended(error(ValueError), 0.0)
    assert [attempt.causes for attempt in task.attempts] == [(rv.Cause("ValueError", "x"),)]
    rows = [row(0, "FAILED", "WORKER_DIED"), row(1, "FAILED", "TASK_EXECUTION_EXCEPTION")]
    assert task.observed(1, rows)
    assert [attempt.causes for attempt in task.attempts] == [(), (rv.Cause("ValueError", "x"),)]
    assert [attempt.error_type for attempt in task.attempts] == ["WORKER_DIED", "TASK_EXECUTION_EXCEPTION"]
