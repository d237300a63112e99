"""The one queue into the core: first in, first out, except for the end of the whole tree."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from rayvisor._core.supervision import messages as m
from rayvisor.errors import SupervisorBusyError

if TYPE_CHECKING:
    from rayvisor._core.supervision.messages import Event

__all__ = ["Mailbox"]


class Mailbox:
    """A queue of events.

    Calls are bounded. Exits and results are never refused, and need no bound: there is at most one end for
    each incarnation, and each effect reports back once.

    Parameters
    ----------
    call_limit
        How many calls may wait for their answer.
    """

    def __init__(self, call_limit: int) -> None:
        self._events: deque[Event] = deque()
        self._arrived = anyio.Event()
        self._call_limit = call_limit
        self._calls = 0

    def __len__(self) -> int:
        return len(self._events)

    def post(self, event: Event) -> None:
        """Add an event; a stop or kill of the whole tree goes to the front.

        Raises
        ------
        SupervisorBusyError
            For a call, if ``call_limit`` calls are waiting already.
        """
        if isinstance(event, m.Call):
            if self._calls >= self._call_limit:
                raise SupervisorBusyError(event.target, self._call_limit)
            self._calls += 1
        if isinstance(event, m.Halt) or (isinstance(event, m.Exited) and not event.child):
            self._events.appendleft(event)
        else:
            self._events.append(event)
        self._arrived.set()

    def answered(self) -> None:
        """Record that a call has been answered: there is room for another one."""
        self._calls -= 1

    async def next(self) -> Event:
        """Wait for the next event."""
        while not self._events:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._events.popleft()
