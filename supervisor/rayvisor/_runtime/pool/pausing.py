"""What becomes of the requests in flight on engines that are being paused: vLLM's three modes.

``wait``
    They finish where they are.
``keep``
    They are held where they are, and go on when the engine is resumed.
``abort``
    They are taken off the engine, and go on on another one, or here once it is resumed. None is lost.

In each of them the engine gets no new work: that is the gate's business, which follows its state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from rayvisor._core.requests.effects import Effect
    from rayvisor._core.requests.scheduler import RequestScheduler

__all__ = ["Pausing"]


class Pausing:
    """The part of a pool that empties its engines, or holds what they have in flight.

    Parameters
    ----------
    scheduler
        Decides.
    apply
        Carries effects of the front out.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self, scheduler: RequestScheduler, apply: Callable[[list[Effect]], None], clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._apply = apply
        self._clock = clock
        self._moved: anyio.Event | None = None
        self.frozen: dict[str, int] = {}
        """Engines, with their incarnation, that were told to do nothing."""

    def incarnation(self, child: str) -> int | None:
        """Which incarnation of an engine is up; None if none is."""
        engine = self._scheduler.routing.engines.get(child)
        return None if engine is None else engine.incarnation

    def in_flight(self, children: Collection[str]) -> int:
        """How many samples these engines have in flight."""
        engines = self._scheduler.routing.engines
        return sum(len(engines[child].in_flight) for child in children if child in engines)

    async def drained(self, children: Collection[str]) -> None:
        """Wait until these engines have nothing in flight, or may have new work again.

        Bounded by the requests' own deadlines; who calls bounds it further.
        """
        engines = self._scheduler.routing.engines
        while any(
            child in engines and engines[child].in_flight and not engines[child].open for child in children
        ):
            self._moved = self._moved or anyio.Event()
            await self._moved.wait()

    def withdraw(self, children: Collection[str]) -> None:
        """Take what these engines have in flight back: it goes on elsewhere, or here later."""
        for child in children:
            self._apply(self._scheduler.withdraw(child, f"{child} was paused", self._clock()))

    def keep(self, children: Collection[str], *, kept: bool) -> None:
        """Hold what these engines have in flight where it is, or let it go on."""
        for child in children:
            self._apply(self._scheduler.hold(child, held=kept, now=self._clock()))

    def look(self) -> None:
        """Something may have moved: who waits looks again."""
        if self._moved is not None:
            self._moved.set()
            self._moved = None
