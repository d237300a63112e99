"""Where things are: the samples of requests, the engines, and who waits in which order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush

from rayvisor._core.protocol.wire import EngineInfo
from rayvisor._core.requests.continuation import Plan
from rayvisor._core.requests.results import Completion, Usage
from rayvisor._core.requests.sample import Origin, Sample
from rayvisor.faults import Fault

__all__ = ["QUARANTINE_FROM", "EnginePlace", "Place", "Request", "SampleState", "Timers"]

QUARANTINE_FROM = 2
"""Strikes from which on a request runs alone: with one, most deaths have nothing to do with it."""


_STRAY_PATIENCE = 1.0
_STRAYS_KEPT = 1024


class Place(StrEnum):
    """Where one sample of a request is."""

    NEW = "waiting for an engine"
    RETURNED = "waiting for another engine"
    SUSPECT = "waiting for an engine of its own"
    RESERVED = "waiting for its own engine to finish with others"
    PARKED = "waiting for its slow reader"
    IN_FLIGHT = "in flight"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Request:
    """One request: its samples, and what bounds it."""

    id: str
    plan: Plan
    submitted: float
    budget: float
    max_attempts: int
    splices: bool
    on_weights_changed: str = "splice"
    parts: list[SampleState] = field(default_factory=list)
    strikes: int = 0
    fault: Fault | None = None
    open: bool = True

    @property
    def deadline(self) -> float:
        """When it fails."""
        return self.submitted + self.budget

    @property
    def quarantine_at(self) -> float:
        """When, as a suspect, it no longer waits for an engine that others can spare."""
        return self.submitted + self.budget / 2

    @property
    def suspect(self) -> bool:
        """Whether its samples run in quarantine."""
        return self.strikes >= QUARANTINE_FROM

    @property
    def delivered(self) -> int:
        """Tokens delivered of all its samples."""
        return sum(len(sample.sample.delivered) for sample in self.parts)

    @property
    def where(self) -> str:
        """Where its samples are, in words."""
        return "; ".join(
            dict.fromkeys(sample.place for sample in self.parts if sample.place is not Place.DONE)
        )

    def usage(self) -> Usage:
        """The prompt once, each token once."""
        prompt = next(
            (sample.sample.prompt_token_ids for sample in self.parts if sample.sample.prompt_token_ids), ()
        )
        return Usage(len(prompt), self.delivered)

    def completion(self) -> Completion:
        """All of it, at its end."""
        first = self.parts[0].sample
        return Completion(
            self.id,
            tuple(sample.sample.result(sample.tries) for sample in self.parts),
            first.prompt_token_ids,
            first.prompt_logprobs,
            self.usage(),
        )


@dataclass(slots=True, eq=False)
class SampleState:
    """One sample of a request, and where it is."""

    number: int
    """Order of submission."""
    request: Request
    sample: Sample
    place: Place = Place.NEW
    engine: EnginePlace | None = None
    tries: int = 0
    backlog: int = 0
    """Tokens delivered that its reader has not taken."""
    flowing: bool = True


@dataclass(slots=True, eq=False)
class EnginePlace:
    """One live incarnation of an engine."""

    child: str
    incarnation: int
    info: EngineInfo
    limit: int
    spare: bool = False
    open: bool = True
    held: bool = False
    """Whether what it has in flight is held where it is."""
    in_flight: dict[str, SampleState] = field(default_factory=dict)
    version: int = 0
    """Of its weights."""
    versioned: bool = False
    """Whether anybody has said which that is."""
    reserved: SampleState | None = None
    """The suspect that runs here alone, or will once the others here are done."""
    useful: bool = False
    last_order: int = 0
    failures: int = 0
    """Orders in a row that it lost or did not take."""
    resting_until: float = float("-inf")
    strays: dict[tuple[str, int], float] = field(default_factory=dict)
    """Attempts not wanted any more that it still sent something for, and when it was last told."""

    @property
    def serves(self) -> bool:
        """Whether it may be given work at all."""
        return self.open and not self.spare

    @property
    def origin(self) -> Origin:
        """What its chunks say of where they come from."""
        return Origin(self.child, self.incarnation, self.version)

    def takes(self, now: float) -> bool:
        """Whether it may be given an order like any other."""
        return self.serves and self.reserved is None and len(self.in_flight) < self.limit and self.rested(now)

    def must_be_told(self, attempt: tuple[str, int], now: float) -> bool:
        """Whether to tell it (again) that an attempt it sent something for is not wanted any more."""
        if now - self.strays.get(attempt, float("-inf")) < _STRAY_PATIENCE:
            return False
        if len(self.strays) >= _STRAYS_KEPT:
            self.strays.clear()
        self.strays[attempt] = now
        return True

    def rested(self, now: float) -> bool:
        """Whether its rest after a failure is over."""
        return self.resting_until <= now


Line = OrderedDict[str, SampleState]
"""A waiting line: first come, first served, and leaving it from the middle costs nothing."""


class Timers:
    """When to look again. Requests that have ended are dropped as they surface, or in bulk."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request | None]] = []
        self._count = 0

    def add(self, at: float, request: Request | None = None) -> None:
        """Look again at ``at``; void once ``request`` has ended."""
        self._count += 1
        heappush(self._heap, (at, self._count, request))

    def trim(self, live: int) -> None:
        """Drop what has ended, if there is much of it compared with the live requests."""
        if len(self._heap) > 64 + 4 * live:
            self._heap = [entry for entry in self._heap if entry[2] is None or entry[2].open]
            heapify(self._heap)

    def due(self, now: float) -> list[Request]:
        """Take out what is due; returns the requests among it."""
        requests = []
        while self._heap and self._heap[0][0] <= now:
            request = heappop(self._heap)[2]
            if request is not None and request.open:
                requests.append(request)
        return requests

    def next(self) -> float | None:
        """When something is due next."""
        while self._heap and (request := self._heap[0][2]) is not None and not request.open:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None
