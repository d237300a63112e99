"""Threads for what this package itself does blockingly: user code cannot take them all.

asyncio's default executor and anyio's default limiter are shared with whatever else runs on the event
loop, user code included. A kill that waits behind it does not happen, so finding and killing processes
has its own limiter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

__all__ = ["run_in_thread"]

T = TypeVar("T")

_MAX_THREADS = 16
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("rayvisor_process_threads")


async def run_in_thread(function: Callable[..., T], *args: object) -> T:
    """Run a blocking function in one of at most 16 threads for each event loop, and return its result.

    A cancelled caller does not wait for the function, whose result is then dropped.
    """
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_MAX_THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(function, *args, limiter=limiter, abandon_on_cancel=True)
