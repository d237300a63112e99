"""Children that are async functions in the supervisor's own process."""

from __future__ import annotations

import inspect
import math
import traceback
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from rayvisor._engine.engine import plain_causes
from rayvisor._runtime.carriers import StartRefused
from rayvisor.children import CoroutineStart
from rayvisor.classify import Ending
from rayvisor.faults import Cause

if TYPE_CHECKING:
    from rayvisor._core.exits import Exit
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
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None  # noqa: ARG002 - the protocol's
    ) -> CoroutineCarrier:
        assert isinstance(spec.start, CoroutineStart)
        return CoroutineCarrier(self._tasks, f"{child}#{incarnation}", spec.start)

    async def release(self, child: str) -> None:
        """Nothing outlives an incarnation."""

    async def close(self) -> None:
        """Nothing is left that the task group does not own."""


class CoroutineCarrier:
    """One run of the function."""

    def __init__(self, tasks: TaskGroup, name: str, start: CoroutineStart) -> None:
        self._tasks = tasks
        self._name = name
        self._start = start
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()
        self._begun = False
        self._ending: Ending | None = None

    async def start(self) -> None:
        self._begun = True
        announces = "task_status" in inspect.signature(self._start.function).parameters
        if announces:
            try:
                await self._tasks.start(self._run_announced, name=self._name)
            except RuntimeError:
                # anyio says so when the task ended without having called started().
                if self._ending is None:
                    raise
            if self._ending is not None:
                raise StartRefused(self._ending)
        else:
            self._tasks.start_soon(self._run, name=self._name)

    async def _run_announced(self, *, task_status: TaskStatus[None]) -> None:
        await self._run(task_status=task_status)

    async def _run(self, **keywords: Any) -> None:
        try:
            with self._scope:
                await self._start.function(*self._start.args, **keywords)
            self._ending = Ending(causes=(Cause("Returned", "the coroutine came to its end"),), intended=True)
        except Exception as error:  # noqa: BLE001 - a child's crash is what a supervisor is for
            self._ending = Ending(
                causes=tuple(Cause(*cause) for cause in plain_causes(error)),
                traceback="".join(traceback.format_exception(error)),
            )
        finally:
            self._over.set()

    async def ended(self) -> Ending:
        await self._over.wait()
        assert self._ending is not None  # set before _over, unless the group itself was cancelled
        return self._ending

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - a task is not told why
        self._scope.cancel()
        if not self._begun:
            return True
        # Cancellation is the only request and the only kill there is: a task that resists keeps its time.
        seconds = STUBBORN_SECONDS if shutdown.seconds is None else shutdown.seconds
        with anyio.move_on_after(None if math.isinf(seconds) else max(seconds, STUBBORN_SECONDS)):
            await self._over.wait()
        return self._over.is_set()

    async def clean(self) -> bool:
        self._scope.cancel()
        return self._over.is_set() or not self._begun
