"""Blocking calls away from the event loop: bounded threads in separate lanes, and a timeout for each call.

User code and the means of recovery never share threads. A hook of a user's actor may block for an hour,
while a kill must get through at once, so each `Lane` has threads of its own.

The threads are daemon threads of our own and not an executor's, for three reasons. A call that Ray never
returns from must not keep the interpreter from exiting. A call that was given up still holds its thread, so
that the bound is a real one. And Ray ties the processes that it starts to the *thread* that started them
(through the kernel's parent-death signal), so that thread has to live on.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, NamedTuple, TypeVar

from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._log import get_logger

__all__ = ["CallThreads", "Lane"]

T = TypeVar("T")
log = get_logger("rayvisor.ray")


class Lane(Enum):
    """A kind of call. Calls of one kind wait for each other, and never for those of another kind."""

    CONTROL = "control"
    """Kills and look-ups: short calls to Ray itself, which recovery depends on."""
    CREATE = "create"
    """Creating actors and placement groups. Pickling a class and its arguments may run user code."""
    USER = "user"
    """User code: hooks, probes and functions that make an actor."""


class CallThreads:
    """Runs blocking calls in a bounded number of threads for each lane, which are started when needed.

    Parameters
    ----------
    size
        Number of calls to Ray that may be under way at once in each of the lanes ``CONTROL`` and ``CREATE``.
        Further calls wait, and the wait counts against their timeout.
    user_size
        Number of user functions that may be under way at once.
    """

    def __init__(self, size: int = 8, *, user_size: int = 32) -> None:
        sizes = {Lane.CONTROL: size, Lane.CREATE: size, Lane.USER: user_size}
        self._lanes = {lane: _LaneThreads(lane.value, sizes[lane]) for lane in Lane}

    def under_way(self, lane: Lane = Lane.CONTROL) -> list[str]:
        """Return the names of the calls that hold a thread of a lane now, oldest first."""
        return self._lanes[lane].under_way()

    async def run(
        self,
        name: str,
        function: Callable[[], T],
        *,
        timeout: float,
        undo: Callable[[T], object] | None = None,
        lane: Lane = Lane.CONTROL,
    ) -> T:
        """Run a blocking call in a thread, and wait for its result.

        Parameters
        ----------
        name
            Its name in `RayCallTimeout` and in the log.
        function
            The call.
        timeout
            Seconds to wait, including the wait for a free thread.
        undo
            Called in a thread with every result that the caller does not get, because the call timed out or
            the caller was cancelled: an actor that was created too late is removed.
        lane
            The kind of call.

        Raises
        ------
        RayCallTimeout
            There is no result in time.
        RuntimeError
            The threads were closed.
        """
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not finished.done():
                finished.set_result(None)

        call = _Call(name, function, undo, lambda: loop.call_soon_threadsafe(wake))
        self._lanes[lane].put(name, call)
        try:
            await asyncio.wait((finished,), timeout=timeout)
            outcome = call.take()
            if outcome is None:
                raise RayCallTimeout(name, timeout, blocked=self.under_way(lane))
        finally:
            late = call.take()
            if late is not None:  # undoing may block, so it goes to a thread
                self.post(f"undo of {name}", lambda: call.settle_late(late))
        if outcome.error is not None:
            raise outcome.error
        result: T = outcome.result
        return result

    def post(self, name: str, function: Callable[[], object], *, lane: Lane = Lane.CONTROL) -> None:
        """Run a blocking call without waiting for it. A failure is logged, also one to begin it."""

        def call() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001 - no caller waits for it: it goes to the log
                log.warning("ray.call.failed", call=name, error=f"{type(error).__name__}: {error}"[:500])

        try:
            self._lanes[lane].put(name, call)
        except RuntimeError as error:
            log.warning("ray.call.failed", call=name, error=str(error))

    def close(self) -> None:
        """Let the threads end once they are idle, and refuse further calls.

        A call after Ray's shutdown would start another Ray, so this comes after it, and is final.
        """
        for lane in self._lanes.values():
            lane.close()


class _LaneThreads:
    """The queue and the threads of one lane."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._changed = threading.Condition()
        self._queue: deque[tuple[str, Callable[[], None]]] = deque()
        self._under_way: dict[int, str] = {}
        self._started = 0
        self._idle = 0
        """Threads that take the next calls: each takes its call and leaves this number in one step."""
        self._closed = False

    def under_way(self) -> list[str]:
        with self._changed:
            return list(self._under_way.values())

    def put(self, name: str, call: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{name}: the connection to Ray is closed")
            if len(self._queue) >= self._idle and self._started < self._size:
                thread = threading.Thread(
                    target=self._work, name=f"rayvisor-ray-{self._name}-{self._started}", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # the system has no thread left
                    if not self._started:
                        raise
                else:
                    self._started += 1
                    self._idle += 1
            self._queue.append((name, call))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        ticket = threading.get_ident()
        while True:
            with self._changed:
                while not self._queue:
                    if self._closed:
                        return
                    self._changed.wait()
                name, call = self._queue.popleft()
                self._idle -= 1
                self._under_way[ticket] = name
            try:
                call()
            finally:
                with self._changed:
                    del self._under_way[ticket]
                    self._idle += 1


class _Outcome(NamedTuple):
    """The result of a call, or the exception that it raised."""

    result: Any
    error: BaseException | None


class _Call(Generic[T]):
    """One call, whose outcome goes either to its caller or to ``undo``, and never to neither.

    Which of them gets it is decided under a lock, whether the outcome or the end of the wait comes first.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], T],
        undo: Callable[[T], object] | None,
        wake: Callable[[], object],
    ) -> None:
        self._name = name
        self._function = function
        self._undo = undo
        self._wake = wake
        self._lock = threading.Lock()
        self._given_up = False
        self._outcome: _Outcome | None = None

    def __call__(self) -> None:
        """Run in a thread."""
        with self._lock:
            if self._given_up:
                return
        try:
            outcome = _Outcome(self._function(), None)
        except BaseException as error:  # noqa: BLE001 - every outcome belongs to the caller
            outcome = _Outcome(None, error)
        if not self._offer(outcome):
            self.settle_late(outcome)
            return
        try:
            self._wake()
        except RuntimeError:  # the loop was closed meanwhile
            untaken = self.take()
            if untaken is not None:
                self.settle_late(untaken)

    def _offer(self, outcome: _Outcome) -> bool:
        """Put the outcome where the caller takes it; return False if the caller has given up."""
        with self._lock:
            if not self._given_up:
                self._outcome = outcome
            return not self._given_up

    def take(self) -> _Outcome | None:
        """Take the outcome if it is there; otherwise, or if it was taken before, None. End the wait for it.

        An outcome that comes later is settled by the thread that has it.
        """
        with self._lock:
            outcome, self._outcome = self._outcome, None
            self._given_up = True
            return outcome

    def settle_late(self, outcome: _Outcome) -> None:
        """Log an outcome that the caller does not get, and undo it."""
        error = outcome.error
        if error is not None:
            log.warning("ray.call.failed_late", call=self._name, error=f"{type(error).__name__}: {error}")
            return
        log.warning("ray.call.came_late", call=self._name, undone=self._undo is not None)
        if self._undo is not None:
            try:
                self._undo(outcome.result)
            except Exception:
                log.exception("ray.call.undo_failed", call=self._name)
