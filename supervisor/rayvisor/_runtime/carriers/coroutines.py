"""Children that are async functions in the supervisor's own process."""

from __future__ import annotations

import inspect
import math
import traceback
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.abc import TaskGroup, TaskStatus

from rayvisor._engine.engine import plain_causes
from rayvisor._runtime.carriers import StartRefused
from rayvisor.classify import Ending
from rayvisor.faults import Cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor._core.exits import Exit
    from rayvisor.children import CoroutineStart
    from rayvisor.specs import ChildSpec, Shutdown

__all__ = ["CoroutineBackend"]

STUBBORN_SECONDS = 1.0
"""How long a task that was cancelled the hard way is waited for; Python has nothing harder."""


class CoroutineBackend:
    """Runs coroutine children as tasks of the supervisor's own group."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks

    async def open(self) -> None:
        """Nothing to prepare."""

    def carry(
        self,
        child: str,
        incarnation: int,
        spec: ChildSpec,
        predecessor: Exit | None,  # noqa: ARG002 - the protocol's
    ) -> CoroutineCarrier:
        """Make the carrier of an incarnation."""
        return CoroutineCarrier(self._tasks, f"{child}#{incarnation}", spec)

    async def release(self, child: str) -> None:
        """Nothing outlives an incarnation."""

    async def close(self) -> None:
        """Nothing is left that the task group does not own."""


class CoroutineCarrier:
    """One run of the function."""

    def __init__(self, tasks: TaskGroup, name: str, spec: ChildSpec) -> None:
        self._tasks = tasks
        self._name = name
        self._start = cast("CoroutineStart", spec.start)
        self._deadline = spec.start_deadline
        self._scope = anyio.CancelScope()
        self._up = anyio.Event()
        self._over = anyio.Event()
        self._begun = False
        self._announced = False
        self._ending = Ending(causes=())

    async def start(self) -> None:
        """Start it; up at once, or when it says so."""
        self._begun = True
        keywords: dict[str, Any] = {}
        if _announces(self._start.function):
            keywords["task_status"] = _Status(self._announce)
        else:
            self._announce()
        self._tasks.start_soon(self._run, keywords, name=self._name)
        with anyio.move_on_after(self._deadline):
            await self._up.wait()
        if self._announced:
            return
        if not self._over.is_set():
            why = f"task_status.started() was not called within start_deadline={self._deadline:g} s"
            raise StartRefused(Ending(causes=(Cause("StartDeadlineExceeded", why),), overdue=True))
        if self._ending.intended:
            why = "the coroutine came to its end without calling task_status.started()"
            raise StartRefused(Ending(causes=(Cause("NeverStarted", why),)))
        raise StartRefused(self._ending)

    def _announce(self) -> None:
        self._announced = True
        self._up.set()

    async def _run(self, keywords: dict[str, Any]) -> None:
        try:
            with self._scope:
                await self._start.function(*self._start.args, **keywords)
            self._ending = Ending(causes=(Cause("Returned", "the coroutine came to its end"),), intended=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a child's crash is what a supervisor is for
            self._ending = _crash(error)
        except anyio.get_cancelled_exc_class():
            # Not by its scope, which takes its own. It goes no further: it would end the whole group.
            self._ending = Ending(causes=(Cause("Cancelled", "the coroutine was cancelled from elsewhere"),))
        finally:
            self._over.set()
            self._up.set()

    async def ended(self) -> Ending:
        """Wait until the function has returned or raised."""
        await self._over.wait()
        return self._ending

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - a task is not told why
        """Cancel it: the only request, and the only kill, that there is."""
        seconds = 0.0 if shutdown.seconds is None else shutdown.seconds
        return await self._cancel(seconds)

    async def clean(self) -> bool:
        """Nothing outlives the function, unless its start was given up."""
        return await self._cancel(0.0)

    async def _cancel(self, seconds: float) -> bool:
        self._scope.cancel()
        if not self._begun:
            return True
        with anyio.move_on_after(None if math.isinf(seconds) else max(seconds, STUBBORN_SECONDS)):
            await self._over.wait()
        return self._over.is_set()


class _Status(TaskStatus[object]):
    """What a function that announces itself calls."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce

    def started(self, value: object = None) -> None:
        del value
        self._announce()


def _announces(function: Any) -> bool:
    try:
        return "task_status" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature to be had
        return False


def _crash(error: BaseException) -> Ending:
    code = error.code if isinstance(error, SystemExit) else None
    return Ending(
        causes=tuple(Cause(*cause) for cause in plain_causes(error)),
        traceback="".join(traceback.format_exception(error)),
        exit_code=code if isinstance(code, int) else None,
        intended=isinstance(error, SystemExit) and not error.code,
    )
