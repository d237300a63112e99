"""``rv.submit``: Ray tasks under a policy, with a chart, a history of attempts, and a timeout."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Coroutine, Generator
from random import Random
from typing import Any, Generic, TypeVar, cast

from rayvisor._backends.ray import tasks as ray_tasks
from rayvisor._core.tasks.lifecycle import Outcome, OutcomeKind, TaskLifecycle
from rayvisor._log import get_logger
from rayvisor.errors import ClusterUnavailableError, SpecError, TaskTimeoutError
from rayvisor.specs import TaskAttempt, TaskPolicy
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = ["Task", "TaskAttempt", "TaskPolicy", "submit"]

T = TypeVar("T")
log = get_logger("rayvisor.tasks")

_LAST_LOOKS = 8
_FEW = 20


def submit(function: Any, /, *args: Any, policy: TaskPolicy | None = None, **kwargs: Any) -> Task[Any]:
    """Run a Ray task under a policy.

    Ray must be initialized. The task is submitted immediately, and supervised by a thread of this process.

    Parameters
    ----------
    function
        A function, or what ``ray.remote`` made of one.
    args, kwargs
        Its arguments. Another [`Task`][rayvisor.Task] among them stands for its result; if that one fails,
        this one fails with the same error.
    policy
        Retries, delays, timeout. The default is Ray's: 3 retries after system failures, none after errors of
        the function itself, no timeout.

    Raises
    ------
    SpecError
        The target is not a function, or returns several values.

    Examples
    --------
    ::

        @ray.remote
        def load(shard: int) -> int: ...

        policy = rv.TaskPolicy(max_retries=2, retry_exceptions=(OSError,), timeout=60)
        task = rv.submit(load, 3, policy=policy)
        value = task.result()  # in a coroutine: await task
    """
    chosen: Any = TaskPolicy() if policy is None else policy
    if not isinstance(chosen, TaskPolicy):
        raise SpecError("policy", policy, "must be a TaskPolicy")
    return Task(function, args, kwargs, chosen)


class Task(Generic[T]):
    """A task that was submitted with `submit`: ``await`` it, or call `result`.

    It runs on when it is no longer awaited; `cancel` ends it.
    """

    def __init__(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        policy: TaskPolicy,
        *,
        timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray,
    ) -> None:
        self.policy = policy
        """The policy it was submitted under."""
        self._timeouts = timeouts
        self._args, self._kwargs = args, kwargs
        self._remote, self.name = ray_tasks.prepare(function, policy)
        self._life = TaskLifecycle(
            policy, ray_tasks.retries_of(self._remote, policy), Random(), time.monotonic()
        )
        self._done: concurrent.futures.Future[tuple[bool, Any]] = concurrent.futures.Future()
        self._cancelling: asyncio.Event | None = None
        self._cancelled = False
        self._overdue = False
        self._forced = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ref: Any = None
        self._unread: dict[int, Any] = {}
        if not self._waits_for():
            self._ref = self._submit()  # arguments that cannot be pickled raise here, in the caller
        _DRIVER.drive(self)

    @property
    def state(self) -> str:
        """Its state in the chart: PENDING, RUNNING, RETRYING, SUCCEEDED, FAILED or CANCELLED.

        RUNNING comes from the cluster's state, about a second late.
        """
        return self._life.state.path

    @property
    def attempts(self) -> tuple[TaskAttempt, ...]:
        """Its attempts as far as they are known; the cluster's state comes about a second late."""
        return self._life.attempts

    @property
    def ref(self) -> Any:
        """Ray's ref of its latest submission; None before the first one."""
        return self._ref

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._done.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait for its result, blocking this thread.

        Parameters
        ----------
        timeout
            Seconds to wait; the task itself continues. None: as long as it takes.

        Raises
        ------
        TimeoutError
            The result is not available yet.
        TaskTimeoutError
            The task took longer than its policy's ``timeout``.
        Exception
            The error of its function, with the remote traceback in a note; or Ray's error:
            ``WorkerCrashedError`` if its worker was lost too often, ``TaskCancelledError``.
        """
        here, value = self._done.result(timeout)
        if not here:
            value = ray_tasks.get(self._ref, timeout)
        return cast("T", value)

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        here, value = await asyncio.shield(asyncio.wrap_future(self._done))
        return cast("T", value if here else await self._ref)

    def cancel(self) -> bool:
        """Cancel the task: it is interrupted, and its worker is killed after the policy's ``cancel_grace``.

        It is not run again. Its result is then Ray's ``TaskCancelledError``, unless it had ended before.

        Returns
        -------
        bool
            False if it had ended already.
        """
        if self._done.done():
            return False
        self._cancelled = True
        loop, event = self._loop, self._cancelling
        if loop is not None and event is not None:
            _call(loop, event.set)
        return True

    # --- in the driver's loop -------------------------------------------------------------------

    def _waits_for(self) -> list[Task[Any]]:
        """Return the tasks among the arguments whose ref is not final yet."""
        given = [*self._args, *self._kwargs.values()]
        tasks = [one for one in given if isinstance(one, Task)]
        # With a backoff the ref changes from attempt to attempt.
        return [one for one in tasks if one.ref is None or one.policy.backoff is not None]

    def _submit(self) -> Any:
        def plain(value: Any) -> Any:
            return value.ref if isinstance(value, Task) else value

        ref = ray_tasks.submit(
            self._remote,
            self.policy,
            tuple(plain(value) for value in self._args),
            {name: plain(value) for name, value in self._kwargs.items()},
        )
        self._life.submitted()
        return ref

    async def _drive(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._cancelling = asyncio.Event()
        if self._cancelled:
            self._cancelling.set()
        try:
            await self._run()
        except BaseException as error:
            self._life.given_up()
            if not self._done.done():
                self._done.set_exception(error)
            if not isinstance(error, Exception):
                raise

    async def _run(self) -> None:
        for other in self._waits_for():
            if not await self._unless_cancelled(asyncio.wrap_future(other._done), None):  # noqa: SLF001 - another task of this module
                self._end_cancelled()
                return
        while True:
            if self._ref is None:
                ray_tasks.require_ray()
                self._ref = self._submit()
            submission = self._life.submission
            looking = asyncio.create_task(self._look(self._ref, submission))
            try:
                outcome, kept = await self._outcome(self._ref)
            finally:
                looking.cancel()
            delay = self._life.ended(outcome, time.monotonic())
            log.debug("task.ended", task=self.name, state=self.state, error=outcome.error_type, delay=delay)
            self._unread[submission] = self._ref
            if delay is None:
                self._settle(outcome, kept)
                break
            await self._unless_cancelled(asyncio.sleep(delay), None)
            if cast("asyncio.Event", self._cancelling).is_set():
                self._end_cancelled()
                break
            self._ref = None
        await self._last_look()

    def _settle(self, outcome: Outcome, kept: tuple[bool, Any]) -> None:
        if outcome.kind is OutcomeKind.VALUE:
            self._done.set_result(kept)
            return
        error = outcome.error
        if self._overdue and self._life.state.leaf == "CANCELLED" and self.policy.timeout is not None:
            late = TaskTimeoutError(
                self.name, self.policy.timeout, forced=self._forced, gone=outcome.error_type != "UNKNOWN"
            )
            late.__cause__ = error
            error = late
        self._done.set_exception(cast("BaseException", error))

    def _end_cancelled(self) -> None:
        self._life.called_off()
        self._done.set_exception(ray_tasks.cancelled(self.name))

    async def _outcome(self, ref: Any) -> tuple[Outcome, tuple[bool, Any]]:
        """Wait for the end of a submission, and cancel it when it takes too long."""
        nothing = (True, None)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def tell(failure: BaseException | None) -> None:
            _call(loop, _resolve, ready, failure)

        _READY.call_when_ready(ref, tell)
        try:
            if not await self._unless_cancelled(ready, self.policy.timeout):
                self._overdue = not cast("asyncio.Event", self._cancelling).is_set()
                self._life.cancel()
                await asyncio.to_thread(ray_tasks.cancel, ref, force=False)
                await asyncio.wait([ready], timeout=self.policy.cancel_grace)
                if not ready.done():
                    self._forced = True
                    await asyncio.to_thread(ray_tasks.cancel, ref, force=True)
                    await asyncio.wait([ready], timeout=self._timeouts.task_forced_cancel)
                if not ready.done():
                    return Outcome(OutcomeKind.CANCELLED, ray_tasks.cancelled(self.name), "UNKNOWN"), nothing
            ready.result()
            return Outcome(OutcomeKind.VALUE), await ray_tasks.fetch(ref)
        except Exception as error:  # noqa: BLE001 - every end of a task is an outcome
            return ray_tasks.outcome_of(error), nothing
        finally:
            _READY.forget(ref)

    async def _unless_cancelled(self, work: Any, seconds: float | None) -> bool:
        """Wait for work; return False if the task is cancelled first, or time runs out. Errors are raised."""
        waiting: asyncio.Future[Any] = asyncio.ensure_future(work)
        asked = asyncio.create_task(cast("asyncio.Event", self._cancelling).wait())
        await asyncio.wait({waiting, asked}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if waiting.done():
            waiting.result()
        return waiting.done()

    async def _look(self, ref: Any, submission: int) -> None:
        """Read from the cluster's state whether a worker has taken it, and Ray's own retries."""
        pause = self._timeouts.task_look_first
        while True:
            await asyncio.sleep(pause * _DRIVER.crowd)
            self._life.observed(submission, await asyncio.to_thread(_READER.read, ref))
            pause = min(pause * 1.5, self._timeouts.task_look_longest)

    async def _last_look(self) -> None:
        """Complete the history of attempts: the cluster's state is about a second late."""
        for _ in range(_LAST_LOOKS):
            for submission, ref in list(self._unread.items()):
                if self._life.observed(submission, await asyncio.to_thread(_READER.read, ref)):
                    del self._unread[submission]
            if not self._unread:
                return
            await asyncio.sleep(self._timeouts.task_last_look * _DRIVER.crowd)


class _Driver:
    """The thread that supervises all tasks of this process; it lives as long as there are any."""

    def __init__(self, *, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray) -> None:
        self._timeouts = timeouts
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._live = 0
        self._idle: asyncio.Event | None = None

    @property
    def crowd(self) -> float:
        """Factor by which each task is polled more rarely, so that many tasks cost no more than some."""
        return max(1.0, self._live / _FEW)

    def drive(self, task: Task[Any]) -> None:
        """Supervise a task."""
        with self._lock:
            self._live += 1
            if self._loop is None:
                up = threading.Event()
                threading.Thread(
                    target=lambda: asyncio.run(self._serve(up)), name="rayvisor-tasks", daemon=True
                ).start()
                up.wait()
            loop = cast("asyncio.AbstractEventLoop", self._loop)
            loop.call_soon_threadsafe(self._own, task._drive())  # noqa: SLF001 - a task of this module

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with self._lock:
            self._live -= 1
            if self._live == 0:
                self._loop = None
                cast("asyncio.Event", self._idle).set()

    async def _serve(self, up: threading.Event) -> None:
        idle = self._idle = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        up.set()
        try:
            while not await _within(idle, self._timeouts.task_ray_check):
                try:
                    ray_tasks.require_ray()
                except ClusterUnavailableError as error:
                    _READY.fail(error)
        finally:
            _READER.close()


_DRIVER = _Driver()
_READY = ray_tasks.Readiness()
_READER = ray_tasks.AttemptReader()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _call(loop: asyncio.AbstractEventLoop, function: Any, *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop was closed: the task has ended
        log.debug("task.loop_closed", call=getattr(function, "__name__", ""))


def _resolve(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
