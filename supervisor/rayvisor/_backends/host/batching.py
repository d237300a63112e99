"""The one way out of a host: items go in one by one, and out as lists, tick by tick.

What costs is the list, not what is in it: about 3 ms of a core for each that leaves a Ray actor, both ends
together, taken from an engine whose processes would use every core there is. So while tokens flow, lists go
out no closer than a tick, and who brings tokens waits for that tick before reading on; the engine puts
together what comes meanwhile. After a pause an item goes at once, and what should not wait (a first token,
an end, a death) hardly does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

from rayvisor._core.protocol.wire import Chunk, HostItem

__all__ = ["SOON_SECONDS", "TICK_SECONDS", "ItemBatcher"]

TICK_SECONDS = 0.04
"""So much lies between two lists while tokens flow."""
SOON_SECONDS = 0.002
"""So much at least, where something in the list should not wait."""
BEAT_SECONDS = 1.0
"""When nothing happens an empty list goes out after so long: the host lives, and its loop runs."""


class ItemBatcher:
    """Items that wait for a reader. Used from one event loop."""

    def __init__(self) -> None:
        self.items: list[HostItem] = []
        """What has not been read yet; without a reader, a chunk of each request at most."""
        self.paced = 0
        """How many wait for the tick."""
        self.reader = 0
        """Number of the present reader; 0 before the first."""
        self.beat = BEAT_SECONDS
        """Seconds after which an empty list goes out."""
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
        """Wait until what was put is about to leave: what is put at once then goes with it.

        Without a reader this waits for one, so nothing piles up.
        """
        self.paced += 1
        try:
            await self._tick.wait()
        finally:
            self.paced -= 1

    async def lists(self) -> AsyncIterator[list[HostItem]]:
        """Everything that was put, in order, a list at a time. A newer call ends the older one.

        An empty list is a heartbeat.
        """
        self.reader += 1
        me = self.reader
        self._news.set()  # wakes the older one, which then ends
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
                await asyncio.sleep(0)  # each of them reads once
            if me != self.reader:
                self._news.set()
                return
            last = time.monotonic()
            items, self.items, self._soon = self.items, [], False
            if items or last - beaten >= self.beat:
                beaten = last
                yield items

    def _rest(self, last: float) -> float:
        """How long to wait before the next list, as things are."""
        if not self.items and not self.paced:
            return math.inf
        return last + (SOON_SECONDS if self._soon else TICK_SECONDS) - time.monotonic()

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
