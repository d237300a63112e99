"""Stopping an engine exactly once for any number of callers, and cleaning up after a failed start."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from rayvisor._backends.host.engine import EngineError, EngineStartFailedError
from rayvisor._core.protocol.wire import ProcessId
from rayvisor.faults import Termination

__all__ = ["EngineStop", "check_none_left", "stop_if_start_fails"]


@contextlib.asynccontextmanager
async def stop_if_start_fails(
    stop: Callable[[float], Awaitable[None]], describe: Callable[[Exception], Awaitable[Termination]]
) -> AsyncIterator[None]:
    """Start an engine within this context; if that fails or is cancelled, nothing is left of it.

    Parameters
    ----------
    stop
        Ends everything that has been started, given seconds of grace.
    describe
        Makes the termination from the error; called while the processes can still be observed.

    Raises
    ------
    EngineStartFailedError
        The start failed; it carries the termination that ``describe`` returned.
    """
    try:
        yield
    except asyncio.CancelledError:
        await stop(0.0)
        raise
    except Exception as error:  # noqa: BLE001 - it comes out as plain data
        termination = await describe(error)
        await stop(0.0)
        raise EngineStartFailedError(termination) from None


def check_none_left(processes: Sequence[ProcessId]) -> None:
    """Raise if processes are alive that were killed.

    Raises
    ------
    EngineError
        A process outlived SIGKILL; the message names it.
    """
    if processes:
        left = ", ".join(f"{process.name} (pid {process.pid})" for process in processes)
        raise EngineError(f"outlived SIGKILL: {left}")


class EngineStop:
    """Stops an engine once for all callers; a caller that is cancelled does not cancel it.

    Each caller gives a grace period; the shortest counts, also while the stop is under way. A stop that
    failed is tried again by the next caller.

    Parameters
    ----------
    carry_out
        Ends the engine. It reads ``kill_at`` to know when to kill.
    """

    def __init__(self, carry_out: Callable[[], Awaitable[None]]) -> None:
        self._carry_out = carry_out
        self._task: asyncio.Task[None] | None = None
        self._kill_at = math.inf

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._kill_at < math.inf

    def kill_at(self) -> float:
        """Return when the grace period ends, on the monotonic clock."""
        return self._kill_at

    async def __call__(self, grace: float) -> None:
        """Request the stop with a grace period in seconds, and wait for it."""
        self._kill_at = min(self._kill_at, time.monotonic() + grace)
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception())):
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        await self._carry_out()
