"""Waiting for what other processes and tasks do: for a condition, never for a time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

import anyio

__all__ = ["until", "until_now"]

INTERVAL_SECONDS = 0.005


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Let everything else go on until a condition holds; TimeoutError when it does not in time.

    The condition is a plain function, or an async one: also what has to be asked for can be waited for.
    """
    with anyio.fail_after(seconds):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await anyio.sleep(INTERVAL_SECONDS)


def until_now(
    condition: Callable[[], object], seconds: float = 60.0, interval: float = INTERVAL_SECONDS
) -> None:
    """Hold this thread up until a condition holds."""
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, f"the condition did not come true within {seconds:g} s"
        time.sleep(interval)
