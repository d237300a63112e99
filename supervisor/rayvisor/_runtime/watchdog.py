"""A thread that notices when the supervisor's event loop stands still, and says where.

Everything rayvisor does on the loop is short; a strategy, a hook or the user's own code may not be. Nobody
can end such a call from outside, but it can be named, with its stack, while it still stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rayvisor._log import get_logger

__all__ = ["Standstill", "Watchdog"]

log = get_logger("rayvisor.supervisor")

LIMIT_SECONDS = 2.0
_ROUND_SECONDS = 0.5
_TICK_SECONDS = 0.05


class Standstill(NamedTuple):
    """The loop stood still for a while."""

    seconds: float
    activity: str
    """``strategy NAME`` when a restart strategy was being asked; else empty."""
    stack: str


class Watchdog:
    """Watches the running loop from a thread. Use as a context manager.

    Parameters
    ----------
    asking
        Name of the strategy that is being asked at this moment, or ``""``. Called in the thread.
    told
        Called on the loop, when it runs again, for each time it stood still.
    limit
        Seconds the loop may stand still before it is said.
    """

    def __init__(
        self,
        asking: Callable[[], str],
        told: Callable[[Standstill], object],
        *,
        limit: float = LIMIT_SECONDS,
    ) -> None:
        self._asking = asking
        self._told = told
        self._limit = limit
        self._over = threading.Event()
        self.lag: tuple[float, int] = (0.0, 0)
        """How many seconds late the loop was in all, and how often it was looked at."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the loop this is called on while the block lasts."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(
            target=self._watch,
            args=(loop, threading.get_ident()),
            name="rayvisor watchdog",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(_TICK_SECONDS * 4)  # it looks at once; nothing of it is left behind

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        while not self._over.wait(min(_ROUND_SECONDS, self._limit / 4)):
            alive = threading.Event()
            began = time.monotonic()
            try:
                loop.call_soon_threadsafe(alive.set)
            except RuntimeError:  # the loop is closed
                return
            if self._answered(alive, began + self._limit):
                self._late(began)
                continue
            asking = self._asking()
            activity = f"strategy {asking}" if asking else ""
            frame = sys._current_frames().get(thread)  # noqa: SLF001 - the only way to another thread's stack
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            log.error("loop.stands_still", activity=activity, seconds=self._limit, stack=stack)
            self._answered(alive, math.inf)
            self._late(began)
            if self._over.is_set():
                return
            standstill = Standstill(time.monotonic() - began, activity, stack)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._told, standstill)

    def _late(self, began: float) -> None:
        seconds, times = self.lag
        self.lag = (seconds + time.monotonic() - began, times + 1)

    def _answered(self, alive: threading.Event, until: float) -> bool:
        """Wait for the loop's answer; also over when the watch is."""
        while not alive.wait(_TICK_SECONDS):
            if self._over.is_set():
                return True
            if time.monotonic() >= until:
                return False
        return True
