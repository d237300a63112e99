"""Figures of a pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from rayvisor._core.requests.limits import Counts
from rayvisor._core.requests.scheduler import RequestScheduler
from rayvisor._core.requests.state import Place
from rayvisor._public import shown_as

__all__ = ["EngineStats", "PoolStats", "stats_of"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Figures of one engine of a pool."""

    child: str
    incarnation: int
    serving: bool
    spare: bool
    in_flight: int
    limit: int
    quarantine: str | None
    """The request that runs alone on this engine, or will; None without one."""


@dataclass(slots=True)
class PoolStats(Counts):
    """A snapshot of what a pool has done, and is doing now."""

    waiting: int = 0
    """New samples without an engine."""
    returning: int = 0
    """Samples that lost their engine and wait for another."""
    suspects: int = 0
    """Samples that wait for quarantine."""
    parked: int = 0
    """Samples that wait for their slow reader."""
    in_flight: int = 0
    engines: tuple[EngineStats, ...] = ()


def stats_of(scheduler: RequestScheduler) -> PoolStats:
    """Return the figures of a scheduler."""
    places = Counter(state.place for state in scheduler.samples)
    engines = tuple(
        EngineStats(
            engine.child,
            engine.incarnation,
            engine.serves,
            engine.spare,
            len(engine.in_flight),
            engine.limit,
            None if engine.reserved is None else engine.reserved.request.id,
        )
        for engine in scheduler.routing.engines.values()
    )
    return PoolStats(
        **asdict(scheduler.counts),
        waiting=places[Place.NEW],
        returning=places[Place.RETURNED],
        suspects=places[Place.SUSPECT] + places[Place.RESERVED],
        parked=places[Place.PARKED],
        in_flight=places[Place.IN_FLIGHT],
        engines=engines,
    )


shown_as("rayvisor.pool", EngineStats, PoolStats)
