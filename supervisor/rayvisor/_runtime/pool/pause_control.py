"""Requests in flight on engines that are being paused, in vLLM's three modes.

``wait``
    They finish on their engine.
``keep``
    They are held on their engine, and continue when it is resumed.
``abort``
    They are taken off the engine, and continue on another one, or on the same one once it is resumed. None
    is lost.

In every mode the engine gets no new requests: its admission is closed by its state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from rayvisor._core.requests.effects import Effect
    from rayvisor._core.requests.scheduler import RequestScheduler

__all__ = ["PauseControl"]


class PauseControl:
    """The part of a pool that drains its engines, or holds what they have in flight.

    Parameters
    ----------
    scheduler
        Decides.
    apply
        Carries out effects of the scheduler.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self, scheduler: RequestScheduler, apply: Callable[[list[Effect]], None], clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._apply = apply
        self._clock = clock
        self._changed: anyio.Event | None = None
        self.frozen: dict[str, int] = {}
        """Engines, with their incarnation, that have been told to stop computing."""

    def incarnation(self, child: str) -> int | None:
        """Return which incarnation of an engine is up; None if none is."""
        engine = self._scheduler.routing.engines.get(child)
        return None if engine is None else engine.incarnation

    def in_flight(self, children: Collection[str]) -> int:
        """Return how many samples these engines have in flight."""
        engines = self._scheduler.routing.engines
        return sum(len(engines[child].in_flight) for child in children if child in engines)

    async def drained(self, children: Collection[str]) -> None:
        """Wait until these engines have nothing in flight, or are admitted again.

        Bounded by the deadlines of the requests; the caller bounds it further.
        """
        engines = self._scheduler.routing.engines
        while any(
            child in engines and engines[child].in_flight and not engines[child].open for child in children
        ):
            self._changed = self._changed or anyio.Event()
            await self._changed.wait()

    def withdraw(self, children: Collection[str]) -> None:
        """Take requests in flight off these engines: they continue on another one, or here later."""
        for child in children:
            self._apply(self._scheduler.withdraw(child, f"{child} was paused", self._clock()))

    def keep(self, children: Collection[str], *, kept: bool) -> None:
        """Hold requests in flight on these engines, or let them continue."""
        for child in children:
            self._apply(self._scheduler.hold(child, held=kept, now=self._clock()))

    def notify(self) -> None:
        """Have ``drained`` check again: requests may have moved."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None
