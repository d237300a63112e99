"""SIGINT and SIGTERM while a tree runs; afterwards the previous handlers are in force again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

__all__ = ["hand_on", "listen", "possible", "restored"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ROUNDS = 50
"""Iterations of the event loop within which a cancellation by a handler arrives."""


def possible() -> bool:
    """Whether this thread may handle signals."""
    return threading.current_thread() is threading.main_thread()


async def listen(received: Callable[[int], object], *, task_status: TaskStatus[None]) -> None:
    """Call ``received`` with each signal, until cancelled."""
    with restored(), anyio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            received(int(number))


async def hand_on(number: int) -> None:
    """Pass a signal on to the handler that was installed before.

    Usually that is asyncio's: it cancels the main task, a cancellation passes through every task group
    unchanged, and KeyboardInterrupt is raised where the loop was started. (If it were raised here, a group
    would wrap it, and the program would end with status 1.)
    """
    signal.raise_signal(number)
    for _ in range(_ROUNDS):
        await anyio.lowlevel.checkpoint()


@contextmanager
def restored() -> Iterator[None]:
    """Restore, at the end of the block, the handlers at its start: asyncio's or the user's."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not installed from Python, and cannot be restored
                signal.signal(number, handler)
