"""Blocking Ray calls, away from the event loop: a bounded set of threads, a deadline for each call.

The threads are daemons of our own rather than an executor's, for three reasons: a call that Ray never
returns from must not keep the interpreter from leaving; a call that was given up still holds its thread, so
the bound stays one; and Ray ties the processes it starts to the life of the *thread* that started them (the
kernel's parent-death signal works so), which therefore has to live on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._log import get_logger

__all__ = ["CallThreads"]

T = TypeVar("T")
log = get_logger("rayvisor.ray")


class CallThreads:
    """Runs blocking calls in at most ``size`` threads, which are started when needed.

    Parameters
    ----------
    size
        How many calls may be under way at once; others wait, and the wait counts against their deadline.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._under_way: dict[int, str] = {}

    def under_way(self) -> list[str]:
        """Names of the calls that hold a thread now, oldest first."""
        with self._lock:
            return list(self._under_way.values())

    async def run(
        self,
        name: str,
        function: Callable[[], T],
        *,
        timeout: float,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Run a blocking call in a thread and wait for it, at most ``timeout`` seconds.

        Parameters
        ----------
        name
            What `RayCallTimeout` and the log call it.
        function
            The call.
        timeout
            Seconds, waiting for a free thread included.
        undo
            Called in the thread with the result when nobody waits for it any more, so that what came too
            late is not left lying about.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        abandoned = threading.Event()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if future.done():  # given up meanwhile; undoing may block, so it goes to a thread again
                self._put(lambda: self._settle_late(name, result, error, undo))
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def call() -> None:
            if abandoned.is_set():
                return
            ticket = threading.get_ident()
            with self._lock:
                self._under_way[ticket] = name
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - every outcome belongs to the waiter
                error = raised
            finally:
                with self._lock:
                    del self._under_way[ticket]
            try:
                loop.call_soon_threadsafe(deliver, result, error)
            except RuntimeError:  # the loop was closed meanwhile
                self._settle_late(name, result, error, undo)

        self._put(call)
        try:
            done, _ = await asyncio.wait((future,), timeout=timeout)
            if done:
                return future.result()
            raise RayCallTimeout(name, timeout, blocked=self.under_way())
        finally:
            abandoned.set()
            future.cancel()

    def post(self, name: str, function: Callable[[], object]) -> None:
        """Run a blocking call that nobody waits for; a failure is logged."""

        def call() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001 - nobody waits for it; the log has it
                log.warning("ray.call.failed", call=name, error=f"{type(error).__name__}: {error}"[:500])

        self._put(call)

    def close(self) -> None:
        """Let the threads end once they are idle. Not before Ray itself has been shut down."""
        with self._lock:
            count = len(self._threads)
        for _ in range(count):
            self._calls.put(None)

    def _put(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._idle <= self._calls.qsize() and len(self._threads) < self._size:
                thread = threading.Thread(
                    target=self._work, name=f"rayvisor-ray-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            call = self._calls.get()
            with self._lock:
                self._idle -= 1
            if call is None:
                return
            call()

    @staticmethod
    def _settle_late(
        name: str, result: Any, error: BaseException | None, undo: Callable[[Any], object] | None
    ) -> None:
        if error is not None:
            log.warning("ray.call.failed_late", call=name, error=f"{type(error).__name__}: {error}")
            return
        log.warning("ray.call.came_late", call=name, undone=undo is not None)
        if undo is not None:
            try:
                undo(result)
            except Exception:
                log.exception("ray.call.undo_failed", call=name)
