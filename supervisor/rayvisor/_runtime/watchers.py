"""Who watches a supervisor: each has a bounded queue, and a slow one is told how much it missed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio

from rayvisor.records import Record, RecordsMissed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Watchers"]


class _Watcher:
    __slots__ = ("arrived", "missed", "over", "records")

    def __init__(self, limit: int) -> None:
        self.records: deque[Record] = deque(maxlen=limit)
        self.arrived = anyio.Event()
        self.missed = 0
        self.over = False


class Watchers:
    """Hands records to everyone who watches."""

    def __init__(self, clock: Callable[[], float], limit: int = 10_000) -> None:
        self._clock = clock
        self._limit = limit
        self._watchers: list[_Watcher] = []

    def tell(self, record: Record) -> None:
        """Give a record to every watcher; the oldest one of a full queue is dropped and counted."""
        for watcher in self._watchers:
            if len(watcher.records) == self._limit:
                watcher.missed += 1
            watcher.records.append(record)
            watcher.arrived.set()

    def close(self) -> None:
        """End every watch once it has read what is there."""
        for watcher in self._watchers:
            watcher.over = True
            watcher.arrived.set()

    def watch(self) -> AsyncIterator[Record]:
        """Watch from now on: also records told before the first one is asked for are kept."""
        watcher = _Watcher(self._limit)
        self._watchers.append(watcher)
        return self._read(watcher)

    async def _read(self, watcher: _Watcher) -> AsyncIterator[Record]:
        try:
            while True:
                if watcher.missed:
                    missed, watcher.missed = watcher.missed, 0
                    yield RecordsMissed(at=self._clock(), count=missed)
                while watcher.records:
                    yield watcher.records.popleft()
                if watcher.over:
                    return
                watcher.arrived = anyio.Event()
                await watcher.arrived.wait()
        finally:
            self._watchers.remove(watcher)
