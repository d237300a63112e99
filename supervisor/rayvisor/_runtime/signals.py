"""SIGINT and SIGTERM while trees run; afterwards the previous handlers are in force again.

All trees of a program share one receiver: it is installed for the first of them, and removed after the last.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


class _Listener:
    """One tree."""

    def __init__(self, received: Callable[[int], object]) -> None:
        self.received = received
        self.ending: anyio.Event | None = None
        """There is one once the tree has received a signal; set when the tree has ended."""


class _Receiver:
    """The handlers of this process, and the trees that they call; reference-counted."""

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []
        self._installed = ExitStack()

    @contextmanager
    def calling(self, listener: _Listener) -> Iterator[None]:
        """Call a listener with each signal while the block lasts."""
        loop = asyncio.get_running_loop()
        if not self._listeners:
            self._installed.enter_context(restored())
            for number in SIGNALS:
                loop.add_signal_handler(number, self._received, number)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)
            if not self._listeners:
                for number in SIGNALS:
                    loop.remove_signal_handler(number)
                self._installed.close()
            if listener.ending is not None:
                listener.ending.set()

    def _received(self, number: int) -> None:
        for listener in tuple(self._listeners):
            if listener.ending is None:
                listener.ending = anyio.Event()
            listener.received(int(number))

    async def others_ended(self) -> None:
        """Wait until every tree that a signal ends has ended."""
        for listener in tuple(self._listeners):
            if listener.ending is not None:
                await listener.ending.wait()


_receiver = _Receiver()


async def listen(received: Callable[[int], object], *, task_status: TaskStatus[None]) -> None:
    """Call ``received`` with each signal, until cancelled."""
    with _receiver.calling(_Listener(received)):
        task_status.started()
        await anyio.sleep_forever()


async def others_ended() -> None:
    """Wait until all other trees that a signal ends have ended, too.

    The block of a tree around this one is cancelled meanwhile, and the cancellation passes through here.
    """
    await _receiver.others_ended()


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
