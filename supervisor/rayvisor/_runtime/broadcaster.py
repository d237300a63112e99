"""Distributes records to watchers: each has a bounded queue, and a slow one learns how many it missed."""

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
    """The records that one watcher has not read yet. Dropping it ends the subscription."""

    def __init__(self, clock: Callable[[], float], limit: int) -> None:
        self._clock = clock
        self._records: deque[Record] = deque(maxlen=limit)
        self._arrived: anyio.Event | None = None
        self._missed = 0
        self._over = False

    def put(self, record: Record) -> bool:
        """Add a record; return whether the queue was full, and the oldest record was dropped and counted."""
        full = len(self._records) == self._records.maxlen
        self._missed += full
        self._records.append(record)
        self._notify()
        return full

    def end(self) -> None:
        """End the stream: nothing more is added."""
        self._over = True
        self._notify()

    def rest(self) -> list[Record]:
        """Return the records that have not been read, and remove them."""
        missed: list[Record] = [RecordsMissed(at=self._clock(), count=self._missed)] if self._missed else []
        records = [*missed, *self._records]
        self._records.clear()
        self._missed = 0
        return records

    def _notify(self) -> None:
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
    """Distributes records to every watcher."""

    def __init__(self, clock: Callable[[], float], limit: int = 10_000) -> None:
        self._clock = clock
        self._limit = limit
        self._streams: WeakSet[RecordStream] = WeakSet()
        self._over = False
        self._sinks: list[Callable[[Record], None]] = []
        self.missed = 0
        """How many records were dropped from full queues."""

    def publish(self, record: Record) -> None:
        """Add a record to the queue of every watcher, and call every sink with it."""
        for stream in self._streams:
            self.missed += stream.put(record)
        for sink in self._sinks:
            sink(record)

    def attach(self, sink: Callable[[Record], None]) -> None:
        """Call ``sink`` with every record from now on; it must neither block nor raise."""
        self._sinks.append(sink)

    def close(self) -> None:
        """End every stream after the records that are in its queue."""
        self._over = True
        for stream in self._streams:
            stream.end()

    def watch(self) -> RecordStream:
        """Return a stream of all records from now on, also of those before the first one is read."""
        stream = RecordStream(self._clock, self._limit)
        if self._over:
            stream.end()
        self._streams.add(stream)
        return stream


shown_as("rayvisor", RecordStream)
