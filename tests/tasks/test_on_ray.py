"""Each rule of Ray's guide to the fault tolerance of tasks, on a real Ray and under a policy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import TaskCancelledError, WorkerCrashedError

import rayvisor as rv
from tests.waiting import until_now

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]

QUICK = rv.Backoff(initial=0.01, maximum=0.02, first_delay_zero=False)
OURS = pytest.mark.parametrize("backoff", [None, QUICK], ids=["Ray's retries", "with a backoff"])
FREE = {"num_cpus": 0}


class Flaky:
    """Counts its runs in a file; in each of the first ones something happens."""

    def __init__(self, file: Path, *events: str) -> None:
        self.file = file
        self.events = events

    def __call__(self) -> str:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(".")
        run = self.runs
        event = self.events[run - 1] if run <= len(self.events) else ""
        if event == "crash":
            os._exit(1)
        if event == "key":
            raise KeyError("no such shard")
        if event == "value":
            raise ValueError("no such value")
        return f"run {run}"

    @property
    def runs(self) -> int:
        return len(self.file.read_text(encoding="utf-8")) if self.file.exists() else 0


def call(function: Callable[[], Any]) -> Any:
    return function()


def policy(backoff: rv.Backoff | None = None, **values: Any) -> rv.TaskPolicy:
    return rv.TaskPolicy(backoff=backoff, options=FREE, **values)


@pytest.fixture
def flaky(tmp_path: Path) -> Callable[..., Flaky]:
    return lambda *events: Flaky(tmp_path / "runs", *events)


def told_by_ray(task: rv.Task[Any], count: int) -> list[str]:
    until_now(lambda: [one.source for one in task.attempts] == ["ray"] * count)
    return [one.error_type for one in task.attempts]


@OURS
async def test_a_task_gives_its_value_to_whoever_waits_for_it(backoff: rv.Backoff | None) -> None:
    task = rv.submit(call, lambda: 7, policy=policy(backoff))
    assert (await task, task.result(), task.state) == (7, 7, "SUCCEEDED")
    assert told_by_ray(task, 1) == [""]
    until_now(lambda: task.attempts[0].worker_pid)
    (attempt,) = task.attempts
    assert (attempt.number, attempt.state, attempt.causes) == (1, "FINISHED", ())
    assert attempt.worker_pid != os.getpid()
    assert attempt.started is not None
    assert attempt.ended is not None


@OURS
def test_an_error_of_the_functions_own_is_not_retried_by_default_and_comes_unwrapped(
    backoff: rv.Backoff | None, flaky: Callable[..., Flaky]
) -> None:
    function = flaky("key")
    task = rv.submit(call, function, policy=policy(backoff))
    with pytest.raises(KeyError, match="no such shard") as raised:
        task.result(60)
    assert type(raised.value) is KeyError
    assert "test_on_ray.py" in raised.value.__notes__[0]
    assert raised.value.__notes__[0].endswith("KeyError: 'no such shard'")
    assert (function.runs, task.state) == (1, "FAILED")
    assert told_by_ray(task, 1) == ["TASK_EXECUTION_EXCEPTION"]
    assert task.attempts[0].causes == (rv.Cause("KeyError", "'no such shard'"),)


@pytest.mark.parametrize(("backoff", "kinds"), [(None, True), (None, (KeyError,)), (QUICK, (KeyError,))])
def test_a_listed_error_is_retried(
    backoff: rv.Backoff | None, kinds: Any, flaky: Callable[..., Flaky]
) -> None:
    task = rv.submit(call, flaky("key", "key"), policy=policy(backoff, max_retries=2, retry_exceptions=kinds))
    assert task.result(60) == "run 3"
    assert told_by_ray(task, 3) == ["TASK_EXECUTION_EXCEPTION"] * 2 + [""]
    assert [one.causes for one in task.attempts][:2] == [(rv.Cause("KeyError", "'no such shard'"),)] * 2


@OURS
def test_an_error_outside_the_list_surfaces_at_once(
    backoff: rv.Backoff | None, flaky: Callable[..., Flaky]
) -> None:
    function = flaky("key", "value")
    task = rv.submit(call, function, policy=policy(backoff, max_retries=9, retry_exceptions=(KeyError,)))
    with pytest.raises(ValueError, match="no such value"):
        task.result(60)
    assert (function.runs, task.state) == (2, "FAILED")


@OURS
def test_a_crash_is_retried_up_to_the_limit_and_then_raised(
    backoff: rv.Backoff | None, flaky: Callable[..., Flaky]
) -> None:
    function = flaky("crash", "crash", "crash")
    task = rv.submit(call, function, policy=policy(backoff, max_retries=1))
    with pytest.raises(WorkerCrashedError) as raised:
        task.result(60)
    assert (function.runs, task.state) == (2, "FAILED")
    assert told_by_ray(task, 2) == ["WORKER_DIED"] * 2
    assert [cause.type for cause in task.attempts[1].causes] == ["WorkerCrashedError"]
    if backoff is not None:
        assert raised.value.__notes__[0].startswith("rayvisor.submit: 2 attempts in ")


@OURS
def test_the_limit_for_all_tasks_comes_from_the_environment(
    backoff: rv.Backoff | None, flaky: Callable[..., Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "1")
    function = flaky(*["crash"] * 5)
    with pytest.raises(WorkerCrashedError):
        rv.submit(call, function, policy=policy(backoff)).result(60)
    assert function.runs == 2


def test_what_the_function_was_decorated_with_holds_unless_the_policy_says_otherwise(
    flaky: Callable[..., Flaky],
) -> None:
    remote = ray.remote(max_retries=0)(call)
    function = flaky("crash")
    with pytest.raises(WorkerCrashedError):
        rv.submit(remote, function, policy=policy(QUICK)).result(60)
    assert rv.submit(remote, function, policy=policy(QUICK, max_retries=1)).result(60) == "run 2"


def test_a_hang_is_cancelled_then_forced_and_not_run_again(flaky: Callable[..., Flaky]) -> None:
    function = flaky()

    def hang() -> None:
        function()
        while True:
            with contextlib.suppress(BaseException):  # it takes no notice of an interrupt
                time.sleep(600)

    rv.submit(call, str, policy=policy()).result(60)  # starts a worker: the timeout is not for that
    task = rv.submit(hang, policy=policy(timeout=2.0, cancel_grace=0.3, max_retries=5))
    until_now(lambda: task.state == "RUNNING")
    with pytest.raises(rv.TaskTimeoutError, match=r"hang took longer than timeout=2 s") as raised:
        task.result(60)
    assert raised.value.forced
    assert raised.value.gone
    assert isinstance(raised.value.__cause__, TaskCancelledError)
    assert (function.runs, task.state) == (1, "CANCELLED")


def test_a_cancelled_task_is_interrupted_first_and_not_run_again(
    flaky: Callable[..., Flaky], tmp_path: Path
) -> None:
    function, cleaned = flaky(), tmp_path / "cleaned"

    def busy() -> None:
        function()
        try:
            while True:
                time.sleep(0.01)
        finally:
            cleaned.touch()

    task = rv.submit(busy, policy=policy(QUICK, max_retries=5, cancel_grace=30.0))
    until_now(lambda: function.runs)
    assert task.cancel()
    with pytest.raises(TaskCancelledError):
        task.result(60)
    assert cleaned.exists()
    assert (function.runs, task.state, task.cancel()) == (1, "CANCELLED", False)


def test_a_task_that_waits_out_a_delay_is_cancelled_at_once(flaky: Callable[..., Flaky]) -> None:
    slow = rv.Backoff(initial=600.0, maximum=600.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    function = flaky("key")
    task = rv.submit(call, function, policy=policy(slow, retry_exceptions=True))
    until_now(lambda: task.state == "RETRYING")
    with pytest.raises(TimeoutError):
        task.result(0.01)
    task.cancel()
    with pytest.raises(TaskCancelledError):
        task.result(30)
    assert (function.runs, task.state) == (1, "CANCELLED")


@OURS
def test_a_dependent_task_sees_the_original_error(
    backoff: rv.Backoff | None, flaky: Callable[..., Flaky]
) -> None:
    def twice(value: str) -> str:
        return value * 2

    good = rv.submit(call, lambda: "a", policy=policy(backoff))
    assert rv.submit(twice, good, policy=policy(backoff)).result(60) == "aa"
    bad = rv.submit(call, flaky("value"), policy=policy(backoff))
    dependent = rv.submit(twice, value=bad, policy=policy(backoff, max_retries=3))
    with pytest.raises(ValueError, match="no such value") as raised:
        dependent.result(60)
    assert type(raised.value) is ValueError
    assert dependent.state == "FAILED"


def test_a_worker_that_leaks_is_recycled_after_max_calls() -> None:
    def where() -> int:
        return os.getpid()

    recycled = {rv.submit(where, policy=policy(max_calls=1)).result(60) for _ in range(3)}
    assert len(recycled) == 3


async def test_whoever_stops_waiting_does_not_end_the_task(flaky: Callable[..., Flaky]) -> None:
    function = flaky()

    def slow() -> str:
        time.sleep(0.5)
        return function()

    task = rv.submit(slow, policy=policy())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_of(task), 0.05)
    assert await task == "run 1"


async def _of(task: rv.Task[Any]) -> Any:
    return await task


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_retries": -2}, "max_retries=-2"),
        ({"max_retries": 1.5}, r"max_retries=1\.5"),
        ({"retry_exceptions": ("KeyError",)}, "must be True, False or exception types"),
        ({"retry_exceptions": KeyboardInterrupt}, "must be True, False or exception types"),
        ({"retry_exceptions": 1}, "must be True, False or exception types"),
        ({"backoff": 1.0}, r"backoff=1\.0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"cancel_grace": float("nan")}, "cancel_grace=nan"),
        ({"max_calls": 0}, "max_calls=0"),
        ({"options": {"max_calls": 1}}, r"options\['max_calls'\]=1"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_when_it_is_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(rv.SpecError, match=message):
        rv.TaskPolicy(**values)


def test_what_is_no_function_is_refused_when_it_is_submitted() -> None:
    for wrong in (3, Flaky, len, ray.remote(call).options(num_cpus=0)):
        with pytest.raises(rv.SpecError, match="must be a function"):
            rv.submit(wrong)
    with pytest.raises(rv.SpecError, match="must return one value"):
        rv.submit(ray.remote(num_returns=2, num_cpus=0)(call), lambda: (1, 2))
    with pytest.raises(rv.SpecError, match="must be a TaskPolicy"):
        rv.submit(call, policy=3)  # type: ignore[arg-type]
    import threading

    with pytest.raises(TypeError, match="pickle"):
        rv.submit(call, threading.Lock(), policy=policy())
