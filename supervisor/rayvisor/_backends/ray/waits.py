"""Waiting for Ray's object refs, and again for those that could not be reached.

A ref that has raised is spent, as far as Ray goes: it raises the same for ever, while its actor answers a new
call. Waiting again on it costs nothing, though, and helps where the wait broke and not the call. So a ref
whose wait failed is waited for once more, and only if that fails, too, is its actor asked anew.
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
    """Whether this is one of Ray's object refs. Does not import ray: who holds one has."""
    if "ray" not in sys.modules:
        return False
    import ray

    return isinstance(value, ray.ObjectRef)


class Waited:
    """One ref that is waited for.

    Parameters
    ----------
    place
        Its place in what the caller gave.
    ref
        The ref.
    judge
        Called with what a wait raised: seconds until the next one, or it raises that error.
    reprobe
        Asks for a new ref in the place of one that is spent.
    """

    def __init__(
        self,
        place: int,
        ref: Any,
        judge: Callable[[Exception], float],
        reprobe: Callable[[int], Any] | None,
    ) -> None:
        self.place = place
        self.ref = ref
        self._judge = judge
        self._reprobe = reprobe
        self._failed = False
        self.last: Exception | None = None

    def failed(self, error: Exception) -> float:
        """Take note of a failed wait; seconds until the next one, 0 where a new ref is waited for at once."""
        self.last = error
        if self._failed and self._reprobe is not None:
            self._failed = False
            try:
                self.ref = self._reprobe(self.place)
            except Exception as refused:  # noqa: BLE001 - the caller's predicate judges it
                return self._judge(refused)
            if not is_ref(self.ref):
                raise TypeError(f"reprobe({self.place}) returned {self.ref!r}: it must return an object ref")
            return 0.0
        delay = self._judge(error)
        self._failed = True
        return delay


class RefWaiter:
    """Waits for refs side by side, each with attempts of its own; the first that is given up ends the wait.

    Parameters
    ----------
    waited
        The refs.
    longest
        Seconds in all; None waits as long as it takes.
    """

    def __init__(self, waited: Sequence[Waited], longest: float | None) -> None:
        self._waited = waited
        self._longest = longest
        self._values: dict[int, Any] = {}

    def wait(self) -> list[Any]:
        """Wait, blocking this thread."""
        import ray

        until = None if self._longest is None else time.monotonic() + self._longest
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
            # Refs may be given twice; Ray wants each once.
            ready, _ = ray.wait(list({one.ref for one in pending}), num_returns=1, timeout=left)
            done = set(ready)
            going_on: list[Waited] = []
            for one in pending:
                if one.ref not in done:
                    going_on.append(one)
                    continue
                try:
                    self._values[one.place] = ray.get(
                        one.ref, timeout=None if until is None else max(0.0, until - time.monotonic())
                    )
                except Exception as error:  # noqa: BLE001 - its judge raises what is not worth another wait
                    due = one.failed(error)
                    heapq.heappush(resting, (time.monotonic() + due, next(order), one))
            pending = going_on
        return [self._values[one.place] for one in self._waited]

    async def wait_in_loop(self) -> list[Any]:
        """Wait on asyncio's event loop."""
        tasks = [
            asyncio.create_task(self._one(one), name=f"wait for ref {one.place}") for one in self._waited
        ]
        if not tasks:
            return []
        try:
            done, pending = await asyncio.wait(
                tasks, timeout=self._longest, return_when=asyncio.FIRST_EXCEPTION
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
        return [self._values[one.place] for one in self._waited]

    async def _one(self, one: Waited) -> None:
        while True:
            try:
                self._values[one.place] = await one.ref
            except Exception as error:  # noqa: BLE001 - as above
                await asyncio.sleep(one.failed(error))
            else:
                return

    def _overdue(self, count: int) -> Exception:
        """The error of a wait that took too long: the last one there was, else that it took too long."""
        errors = [one.last for one in self._waited if one.place not in self._values and one.last is not None]
        why = f"{count} of {len(self._waited)} refs are not there after timeout={self._longest:g} s"
        if errors:
            errors[-1].add_note(f"rayvisor.retry: {why}")
            return errors[-1]
        return TimeoutError(why)
