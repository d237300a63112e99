"""The end of an engine: one for many who ask for it, and of a start that comes to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from rayvisor._backends.host.engine import EngineStartFailedError
from rayvisor.faults import Termination

__all__ = ["EngineStop", "up_or_ended"]


@contextlib.asynccontextmanager
async def up_or_ended(
    stop: Callable[[float], Awaitable[None]], describe: Callable[[Exception], Awaitable[Termination]]
) -> AsyncIterator[None]:
    """Start an engine within: nothing is left of it when that fails or is called off.

    Parameters
    ----------
    stop
        Ends what has been started, given seconds of grace.
    describe
        Says why it failed; it is asked while what was started can still be looked at.

    Raises
    ------
    EngineStartFailedError
        It failed: with what ``describe`` says.
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


class EngineStop:
    """The end of an engine: done once, whoever asks, and not undone when one who asked goes away.

    Each who asks brings a grace; the shortest counts, also when it is brought while the end is under
    way. An end that failed is tried again by the next who asks.

    Parameters
    ----------
    carry_out
        Ends the engine. It looks at ``kill_at`` for how long it may be patient.
    """

    def __init__(self, carry_out: Callable[[], Awaitable[None]]) -> None:
        self._carry_out = carry_out
        self._task: asyncio.Task[None] | None = None
        self._kill_at = math.inf

    @property
    def asked(self) -> bool:
        """Whether anybody has asked for it."""
        return self._kill_at < math.inf

    def kill_at(self) -> float:
        """When patience ends, on the monotonic clock."""
        return self._kill_at

    async def __call__(self, grace: float) -> None:
        """Ask for the end, and wait for it."""
        self._kill_at = min(self._kill_at, time.monotonic() + grace)
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception())):
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        await self._carry_out()
