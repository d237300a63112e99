"""The shutdown of an engine: one for all its callers, also after a failed start."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from rayvisor._backends.host.engine import EngineError, EngineStartFailedError
from rayvisor._core.protocol.wire import Died, ProcessId

__all__ = ["Shutdown", "check_none_left", "stop_if_start_fails"]


@contextlib.asynccontextmanager
async def stop_if_start_fails(
    stop: Callable[[float], Awaitable[None]], describe: Callable[[Exception], Awaitable[Died]]
) -> AsyncIterator[None]:
    """Start an engine within this context; it is stopped if the start fails or is cancelled.

    Parameters
    ----------
    stop
        Ends the engine; its argument is the grace in seconds.
    describe
        Explains the failure; it is called before the engine is stopped.

    Raises
    ------
    EngineStartFailedError
        The start failed, with the explanation of ``describe``.
    """
    try:
        yield
    except asyncio.CancelledError:
        await stop(0.0)
        raise
    except Exception as error:  # noqa: BLE001 - it comes out as plain data
        died = await describe(error)
        await stop(0.0)
        raise EngineStartFailedError(died) from None


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


class Shutdown:
    """The shutdown of an engine: it runs once for all its callers, and goes on if a caller is cancelled.

    Each caller brings a grace. The shortest one counts, also if it comes while the shutdown runs. A shutdown
    that has failed is retried by the next caller.

    Parameters
    ----------
    carry_out
        Ends the engine. It waits until ``kill_at`` before it kills.
    """

    def __init__(self, carry_out: Callable[[], Awaitable[None]]) -> None:
        self._carry_out = carry_out
        self._task: asyncio.Task[None] | None = None
        self._kill_at = math.inf

    @property
    def requested(self) -> bool:
        """Whether it has been requested."""
        return self._kill_at < math.inf

    def kill_at(self) -> float:
        """Return the deadline for SIGKILL, on the monotonic clock; infinity before a request."""
        return self._kill_at

    async def __call__(self, grace: float) -> None:
        """Request the shutdown, and wait for its end."""
        self._kill_at = min(self._kill_at, time.monotonic() + grace)
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception())):
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        await self._carry_out()
