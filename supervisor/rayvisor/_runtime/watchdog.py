"""A thread that detects when the supervisor's event loop is blocked, and logs by what.

Everything that rayvisor does on the loop is short; a strategy, a hook or the user's own code may not be. Such
a call cannot be ended from outside, but its stack can be logged while it lasts.
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
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

__all__ = ["BlockedPeriod", "Watchdog"]

log = get_logger("rayvisor.supervisor")


class BlockedPeriod(NamedTuple):
    """A time in which the loop was blocked."""

    seconds: float
    activity: str
    """``strategy NAME`` if a restart strategy was planning; otherwise empty."""
    stack: str


class Watchdog:
    """Watches the running loop from a thread. Use as a context manager.

    Parameters
    ----------
    asking
        Returns the name of the strategy that is planning at this moment, or ``""``. Called in the thread.
    report
        Called on the loop, when it runs again, for each time that it was blocked.
    timeouts
        How long the loop may be blocked before it is logged, and how often that is checked.
    """

    def __init__(
        self,
        asking: Callable[[], str],
        report: Callable[[BlockedPeriod], object],
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self._asking = asking
        self._report = report
        self._limit = timeouts.loop_blocked
        self._round = min(timeouts.watchdog_round, self._limit / 4)
        self._tick = timeouts.watchdog_tick
        self._over = threading.Event()
        self.lag: tuple[float, int] = (0.0, 0)
        """By how many seconds the loop was late in all, and how often that was measured."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running loop while the block lasts."""
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
            thread.join(self._tick * 4)  # it checks every tick, so the thread does not outlive the block

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        while not self._over.wait(self._round):
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
            log.error("loop.blocked", activity=activity, seconds=self._limit, stack=stack)
            self._answered(alive, math.inf)
            self._late(began)
            if self._over.is_set():
                return
            blocked = BlockedPeriod(time.monotonic() - began, activity, stack)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._report, blocked)

    def _late(self, began: float) -> None:
        seconds, times = self.lag
        self.lag = (seconds + time.monotonic() - began, times + 1)

    def _answered(self, alive: threading.Event, until: float) -> bool:
        """Wait for the loop's answer; also over when the watch is."""
        while not alive.wait(self._tick):
            if self._over.is_set():
                return True
            if time.monotonic() >= until:
                return False
        return True
