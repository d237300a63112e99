"""Children that are async functions in the supervisor's own process."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.abc import TaskGroup, TaskStatus

from rayvisor._core.protocol.causes import plain_causes, traceback_text
from rayvisor._core.protocol.user_code import concerns_program
from rayvisor._log import get_logger
from rayvisor._runtime.children.protocol import StartIgnored, StartRefusedError, takes, with_predecessor
from rayvisor.faults import Cause, Termination
from rayvisor.specs import IgnoreStart
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, CoroutineStart, Shutdown

__all__ = ["CoroutineBackend"]

log = get_logger("rayvisor.supervisor")


class CoroutineBackend:
    """Runs coroutine children as tasks of the supervisor's own group.

    Parameters
    ----------
    tasks
        The group.
    timeouts
        How long a task that resists its cancellation is awaited.
    """

    def __init__(self, tasks: TaskGroup, *, timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime) -> None:
        self._tasks = tasks
        self._timeouts = timeouts

    async def open(self) -> None:
        """Do nothing: there is nothing to prepare."""

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> CoroutineIncarnation:
        """Create an incarnation; nothing is started by it."""
        name = f"{child}#{incarnation}"
        return CoroutineIncarnation(
            self._tasks, name, spec, predecessor, kill_timeout=self._timeouts.coroutine_kill
        )

    async def release(self, child: str) -> None:
        """Do nothing: nothing outlives an incarnation."""

    async def close(self) -> None:
        """Do nothing: the task group owns every task."""


class CoroutineIncarnation:
    """One run of the coroutine function."""

    def __init__(
        self,
        tasks: TaskGroup,
        name: str,
        spec: ChildSpec,
        predecessor: Exit | None,
        *,
        kill_timeout: float,
    ) -> None:
        self._tasks = tasks
        self._kill_timeout = kill_timeout
        self._name = name
        self._start = cast("CoroutineStart", spec.start)
        self._timeout = spec.start_timeout
        self._predecessor = predecessor
        self._task: asyncio.Task[object] | None = None
        self._ignored = False
        self._stop_requested = False
        self._scope = anyio.CancelScope()
        self._up = anyio.Event()
        self._over = anyio.Event()
        self._started = False
        self._reported_up = False
        self._termination = Termination(causes=())

    async def start(self) -> None:
        """Start the task; it is up immediately, or when it calls ``task_status.started()``."""
        self._started = True
        keywords = with_predecessor(self._start.function, self._predecessor)
        if takes(self._start.function, "task_status"):
            keywords["task_status"] = _Status(self._report_up)
        else:
            self._report_up()
        self._tasks.start_soon(self._run, keywords, name=self._name)
        with anyio.move_on_after(self._timeout):
            await self._up.wait()
        if self._reported_up:
            return
        if self._ignored:
            raise StartIgnored
        if not self._over.is_set():
            why = f"task_status.started() was not called within start_timeout={self._timeout:g} s"
            raise StartRefusedError(Termination(causes=(Cause("StartTimeout", why),), overdue=True))
        if self._termination.intended:
            why = "the coroutine returned without calling task_status.started()"
            raise StartRefusedError(Termination(causes=(Cause("NeverStarted", why),)))
        raise StartRefusedError(self._termination)

    def _report_up(self) -> None:
        self._reported_up = True
        self._up.set()

    async def _run(self, keywords: dict[str, Any]) -> None:
        self._task = asyncio.current_task()
        try:
            with self._scope:
                await self._start.function(*self._start.args, **keywords)
            self._termination = Termination(
                causes=(Cause("Returned", "the coroutine has returned"),), intended=True
            )
        except anyio.get_cancelled_exc_class() as error:
            # Not by its own scope, which catches that. Raised further it would end the whole group.
            self._termination = _cancelled(error, self._task)
        except BaseException as error:
            if concerns_program(error):
                raise
            self._ignored = isinstance(error, IgnoreStart) and not self._reported_up
            self._termination = _crash(error)
            if self._stop_requested:
                log.warning("stop.raised", child=self._name, why=str(self._termination.causes[0]))
        finally:
            self._over.set()
            self._up.set()

    async def ended(self) -> Termination:
        """Wait until the function has returned or raised."""
        await self._over.wait()
        return self._termination

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - a task does not learn the reason
        """Cancel the task, wait, then cancel it despite its shields: there is no stronger kill."""
        self._stop_requested = True
        self._scope.cancel()
        if shutdown.seconds:
            with anyio.move_on_after(None if math.isinf(shutdown.seconds) else shutdown.seconds):
                await self._finished()
        return await self._kill()

    async def clean(self) -> bool:
        """Cancel the task, which still runs only if its start was given up."""
        self._scope.cancel()
        return await self._kill()

    async def _kill(self) -> bool:
        if not self._started:
            return True
        pause = 0.001
        with anyio.move_on_after(self._kill_timeout):
            while not self._over.is_set():
                # asyncio's own cancellation, which no shield of anyio's stops; repeated if it was swallowed.
                if self._task is not None:
                    self._task.cancel()
                with anyio.move_on_after(pause):
                    await self._over.wait()
                pause = min(2 * pause, 0.1)
        return self._over.is_set()

    async def _finished(self) -> None:
        if self._started:
            await self._over.wait()


class _Status(TaskStatus[object]):
    """The ``task_status`` of a function that reports when it is up."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._report_up = announce

    def started(self, value: object = None) -> None:
        del value
        self._report_up()


def _cancelled(error: BaseException, task: asyncio.Task[object] | None) -> Termination:
    if task is not None and task.cancelling():
        return Termination(causes=(Cause("Cancelled", "the coroutine was cancelled by other code"),))
    own = Cause("Cancelled", "the coroutine raised a cancellation that nothing requested")
    return Termination(causes=(own, *plain_causes(error)), traceback=traceback_text(error))


def _crash(error: BaseException) -> Termination:
    code = error.code if isinstance(error, SystemExit) else None
    return Termination(
        causes=plain_causes(error),
        traceback=traceback_text(error),
        exit_code=code if isinstance(code, int) else None,
        intended=isinstance(error, SystemExit) and not error.code,
    )
