"""Waiting for Ray's object refs, and waiting again for those that could not be reached.

A ref that has raised is spent: Ray raises the same error forever, while its actor answers a new call.
Waiting for it again costs nothing, though, and helps where the wait failed and not the call. So a ref whose
wait failed is waited for once more, and only if that fails too is its actor called again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["RefWaiter", "Waited", "is_ref"]


def is_ref(value: object) -> bool:
    """Return whether this is one of Ray's object refs. Does not import ray: an owner of a ref has."""
    if "ray" not in sys.modules:
        return False
    import ray

    return isinstance(value, ray.ObjectRef)


class Waited:
    """One ref that is waited for.

    Parameters
    ----------
    index
        Its index in the caller's list.
    ref
        The ref.
    judge
        Called with the error of a wait: returns the seconds until the next one, or raises that error.
    reprobe
        Returns a new ref in place of a spent one, given its index.
    """

    def __init__(
        self,
        index: int,
        ref: Any,
        judge: Callable[[Exception], float],
        reprobe: Callable[[int], Any] | None,
    ) -> None:
        self.index = index
        self.ref = ref
        self._judge = judge
        self._reprobe = reprobe
        self._failed = False
        self.last: Exception | None = None

    def failed(self, error: Exception) -> float:
        """Record a failed wait; return the seconds until the next one, 0 for one on a new ref."""
        self.last = error
        if self._failed and self._reprobe is not None:
            self._failed = False
            try:
                self.ref = self._reprobe(self.index)
            except Exception as refused:  # noqa: BLE001 - the caller's predicate judges it
                return self._judge(refused)
            if not is_ref(self.ref):
                raise TypeError(f"reprobe({self.index}) returned {self.ref!r}: it must return an object ref")
            return 0.0
        delay = self._judge(error)
        self._failed = True
        return delay


class RefWaiter:
    """Waits for refs concurrently, each with its own attempts; the first that is given up ends the wait.

    Parameters
    ----------
    waited
        The refs.
    timeout
        Seconds for all of them; None: no limit.
    """

    def __init__(self, waited: Sequence[Waited], timeout: float | None) -> None:
        self._waited = waited
        self._timeout = timeout
        self._values: dict[int, Any] = {}

    def wait(self) -> list[Any]:
        """Wait for all values, blocking this thread."""
        import ray

        until = None if self._timeout is None else time.monotonic() + self._timeout
        pending = list(self._waited)
        order = itertools.count()
        resting: list[tuple[float, int, Waited]] = []
        while pending or resting:
            now = time.monotonic()
            while resting and resting[0][0] <= now:
                pending.append(heapq.heappop(resting)[2])
            ends = [resting[0][0]] if resting else []
            ends += [until] if until is not None else []
            left = max(0.0, min(ends) - now) if ends else None
            if until is not None and now >= until:
                raise self._overdue(len(pending) + len(resting))
            if not pending:
                time.sleep(left or 0.0)
                continue
            # A ref may be in the list twice, while Ray wants each once.
            ready, _ = ray.wait(list({one.ref for one in pending}), num_returns=1, timeout=left)
            done = set(ready)
            still_pending: list[Waited] = []
            for one in pending:
                if one.ref not in done:
                    still_pending.append(one)
                    continue
                try:
                    self._values[one.index] = ray.get(
                        one.ref, timeout=None if until is None else max(0.0, until - time.monotonic())
                    )
                except Exception as error:  # noqa: BLE001 - the judge raises errors that are not retried
                    due = one.failed(error)
                    heapq.heappush(resting, (time.monotonic() + due, next(order), one))
            pending = still_pending
        return [self._values[one.index] for one in self._waited]

    async def wait_in_loop(self) -> list[Any]:
        """Wait for all values on asyncio's event loop."""
        tasks = [
            asyncio.create_task(self._one(one), name=f"wait for ref {one.index}") for one in self._waited
        ]
        if not tasks:
            return []
        try:
            done, pending = await asyncio.wait(
                tasks, timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in tasks:
                if task in done:
                    task.result()
            if pending:
                raise self._overdue(len(pending))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [self._values[one.index] for one in self._waited]

    async def _one(self, one: Waited) -> None:
        while True:
            try:
                self._values[one.index] = await one.ref
            except Exception as error:  # noqa: BLE001 - as above
                await asyncio.sleep(one.failed(error))
            else:
                return

    def _overdue(self, count: int) -> Exception:
        """Return the error of a wait that took too long: the last error of a ref, or else a TimeoutError."""
        errors = [one.last for one in self._waited if one.index not in self._values and one.last is not None]
        why = f"{count} of {len(self._waited)} refs are not ready after timeout={self._timeout:g} s"
        if errors:
            errors[-1].add_note(f"rayvisor.retry: {why}")
            return errors[-1]
        return TimeoutError(why)
