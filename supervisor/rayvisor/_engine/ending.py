"""One end for many who ask for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

__all__ = ["Ending"]


class Ending:
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
