"""SIGINT and SIGTERM while a tree runs; afterwards the handlers are as they were."""

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
"""Of the event loop, within which a cancellation that a handler asked for has come."""


def possible() -> bool:
    """Whether this thread may handle signals."""
    return threading.current_thread() is threading.main_thread()


async def listen(heard: Callable[[int], object], *, task_status: TaskStatus[None]) -> None:
    """Call ``heard`` with each signal, until cancelled."""
    with restored(), anyio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            heard(int(number))


async def hand_on(number: int) -> None:
    """Give a signal to whoever handled it before.

    That is asyncio, most often: it cancels the main task, which passes through every task group as it is,
    and raises KeyboardInterrupt where the loop was started. (Raised here, a group would wrap it, and the
    program would end with status 1.)
    """
    signal.raise_signal(number)
    for _ in range(_ROUNDS):
        await anyio.lowlevel.checkpoint()


@contextmanager
def restored() -> Iterator[None]:
    """Put back the handlers that were there: asyncio's own, or the user's."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not installed from Python, and cannot be put back
                signal.signal(number, handler)
