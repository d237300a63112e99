"""SIGINT and SIGTERM while a tree runs; afterwards the handlers are as they were."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.abc import TaskStatus

__all__ = ["listen", "possible", "restored"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def possible() -> bool:
    """Whether this thread may handle signals."""
    return threading.current_thread() is threading.main_thread()


async def listen(heard: Callable[[int], object], *, task_status: TaskStatus[None]) -> None:
    """Call ``heard`` with each signal, until cancelled."""
    with restored(), anyio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            heard(int(number))


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
