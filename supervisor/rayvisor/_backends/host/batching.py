"""The only output of a host: items go in one by one, and leave in lists, one list per tick.

The cost is per list, not per item: about 3 ms of a core for each list that leaves a Ray actor, both ends
together, taken from an engine whose processes would use every core of the machine. So while tokens flow, two
lists are at least a tick apart, and a producer of tokens waits for that tick before it reads on; the engine
merges the tokens that come meanwhile. After a pause an item leaves immediately. Urgent items (a first token,
the end of a request, a termination) wait for two milliseconds at most.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

from rayvisor._core.protocol.wire import Chunk, HostItem
from rayvisor.timeouts import DEFAULT_TIMEOUTS, HostTimeouts

__all__ = ["ItemBatcher"]


class ItemBatcher:
    """Keeps items until a reader takes them. Used from one event loop.

    Parameters
    ----------
    timeouts
        The intervals between two lists, and the one of heartbeats until ``beat`` is set.
    """

    def __init__(self, *, timeouts: HostTimeouts = DEFAULT_TIMEOUTS.host) -> None:
        self._timeouts = timeouts
        self.items: list[HostItem] = []
        """The items that have not been read; without a reader, one chunk of each request at most."""
        self.paced = 0
        """How many producers wait for the tick."""
        self.reader = 0
        """Number of the current reader; 0 before the first."""
        self.beat = timeouts.heartbeat
        """Seconds without items after which an empty list leaves: a sign that the host's event loop runs."""
        self._soon = False
        self._news = asyncio.Event()
        self._tick = asyncio.Event()

    def put(self, item: HostItem) -> None:
        """Add an item."""
        self.items.append(item)
        soon = not isinstance(item, Chunk) or bool(item.prompt_token_ids or item.finish_reason)
        if soon or len(self.items) == 1:
            self._soon = self._soon or soon
            self._news.set()

    async def next_tick(self) -> None:
        """Wait until the items are about to leave; an item that is put right afterwards leaves with them.

        Without a reader this waits for one, so that items do not pile up.
        """
        self.paced += 1
        try:
            await self._tick.wait()
        finally:
            self.paced -= 1

    async def lists(self) -> AsyncIterator[list[HostItem]]:
        """Yield all items in order, a list at a time. A newer call ends the older one.

        An empty list is a heartbeat.
        """
        self.reader += 1
        me = self.reader
        self._news.set()  # wakes the older reader, which then ends
        last = -math.inf
        beaten = time.monotonic()
        while True:
            while me == self.reader and (rest := self._rest(last)) > 0.0:
                due = beaten + self.beat - time.monotonic()
                if due <= 0.0:
                    break
                await self._wait_for_news(min(rest, due))
            if me == self.reader and self.paced:
                self._tick.set()
                self._tick = asyncio.Event()
                await asyncio.sleep(0)  # each producer reads once
            if me != self.reader:
                self._news.set()
                return
            last = time.monotonic()
            items, self.items, self._soon = self.items, [], False
            if items or last - beaten >= self.beat:
                beaten = last
                yield items

    def _rest(self, last: float) -> float:
        """Return the seconds to wait before the next list, if nothing else happens."""
        if not self.items and not self.paced:
            return math.inf
        own = self._timeouts
        return last + (own.batch_interval_urgent if self._soon else own.batch_interval) - time.monotonic()

    async def _wait_for_news(self, most: float) -> None:
        self._news.clear()
        waking = None
        if most < math.inf:
            waking = asyncio.get_running_loop().call_later(most, self._news.set)
        try:
            await self._news.wait()
        finally:
            if waking is not None:
                waking.cancel()
