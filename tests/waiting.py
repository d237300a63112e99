"""Waits for conditions that other processes and tasks bring about, never for a fixed time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

import anyio

__all__ = ["until", "until_now"]

INTERVAL_SECONDS = 0.005


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; raise TimeoutError after ``seconds``.

    The condition is a function or an async function.
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
    """Block this thread until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:g} s"
        time.sleep(interval)
