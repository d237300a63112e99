"""Who watches a supervisor: each has a bounded queue, and a slow one is told how much it missed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio

from rayvisor._public import shown_as
from rayvisor.records import Record, RecordsMissed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RecordBroadcaster", "RecordStream"]


class RecordStream(AsyncIterator[Record]):
    """The records that one watcher has not read yet; who drops it watches no more."""

    def __init__(self, clock: Callable[[], float], limit: int) -> None:
        self._clock = clock
        self._records: deque[Record] = deque(maxlen=limit)
        self._arrived: anyio.Event | None = None
        self._missed = 0
        self._over = False

    def put(self, record: Record) -> bool:
        """Add a record; of a full queue the oldest one goes, and is counted. Tells whether one went."""
        full = len(self._records) == self._records.maxlen
        self._missed += full
        self._records.append(record)
        self._tell()
        return full

    def end(self) -> None:
        """Nothing more will come."""
        self._over = True
        self._tell()

    def rest(self) -> list[Record]:
        """Take what is there and has not been read."""
        missed: list[Record] = [RecordsMissed(at=self._clock(), count=self._missed)] if self._missed else []
        records = [*missed, *self._records]
        self._records.clear()
        self._missed = 0
        return records

    def _tell(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    async def __anext__(self) -> Record:
        while not self._records:
            if self._over:
                raise StopAsyncIteration
            self._arrived = anyio.Event()
            await self._arrived.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return RecordsMissed(at=self._clock(), count=missed)
        return self._records.popleft()


class RecordBroadcaster:
    """Hands records to everyone who watches."""

    def __init__(self, clock: Callable[[], float], limit: int = 10_000) -> None:
        self._clock = clock
        self._limit = limit
        self._watches: WeakSet[RecordStream] = WeakSet()
        self._over = False
        self._sinks: list[Callable[[Record], None]] = []
        self.missed = 0
        """How many records watchers did not get."""

    def tell(self, record: Record) -> None:
        """Give a record to every watcher."""
        for watch in self._watches:
            self.missed += watch.put(record)
        for sink in self._sinks:
            sink(record)

    def attach(self, sink: Callable[[Record], None]) -> None:
        """Have ``sink`` called with every record from now on; it must neither wait nor raise."""
        self._sinks.append(sink)

    def close(self) -> None:
        """End every watch once it has read what is there."""
        self._over = True
        for watch in self._watches:
            watch.end()

    def watch(self) -> RecordStream:
        """Watch from now on: records told before the first one is asked for are kept as well."""
        watch = RecordStream(self._clock, self._limit)
        if self._over:
            watch.end()
        self._watches.add(watch)
        return watch


shown_as("rayvisor", RecordStream)
