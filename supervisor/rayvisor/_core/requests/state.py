"""State of requests, their samples, the engines and the queues."""

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
"""Number of strikes with which a request runs alone: with one, most deaths have another cause."""


_STRAY_PATIENCE = 1.0
_STRAYS_KEPT = 1024


class Place(StrEnum):
    """Place of one sample of a request."""

    NEW = "waiting for an engine"
    RETURNED = "waiting for another engine"
    SUSPECT = "waiting for an engine of its own"
    RESERVED = "waiting for its own engine to finish with others"
    PARKED = "waiting for its slow reader"
    IN_FLIGHT = "in flight"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Request:
    """One request: its samples and its limits."""

    id: str
    plan: Plan
    submitted: float
    budget: float
    max_attempts: int
    splices: bool
    on_weights_changed: str = "splice"
    samples: list[SampleState] = field(default_factory=list)
    strikes: int = 0
    fault: Fault | None = None
    open: bool = True

    @property
    def deadline(self) -> float:
        """Time at which it fails."""
        return self.submitted + self.budget

    @property
    def quarantine_at(self) -> float:
        """Time from which, as a suspect, it no longer waits for an engine that others can spare."""
        return self.submitted + self.budget / 2

    @property
    def suspect(self) -> bool:
        """Whether its samples run in quarantine."""
        return self.strikes >= QUARANTINE_FROM

    @property
    def delivered(self) -> int:
        """Tokens delivered of all its samples."""
        return sum(len(state.sample.delivered) for state in self.samples)

    @property
    def where(self) -> str:
        """Places of its samples, for messages."""
        return "; ".join(
            dict.fromkeys(state.place for state in self.samples if state.place is not Place.DONE)
        )

    def usage(self) -> Usage:
        """Return its usage: the prompt and each token once."""
        prompt = next(
            (state.sample.prompt_token_ids for state in self.samples if state.sample.prompt_token_ids), ()
        )
        return Usage(len(prompt), self.delivered)

    def completion(self) -> Completion:
        """Return the result of the finished request."""
        first = self.samples[0].sample
        return Completion(
            self.id,
            tuple(state.sample.result(state.tries) for state in self.samples),
            first.prompt_token_ids,
            first.prompt_logprobs,
            self.usage(),
        )


@dataclass(slots=True, eq=False)
class SampleState:
    """One sample of a request, and its place."""

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
    """Whether its samples in flight are held."""
    in_flight: dict[str, SampleState] = field(default_factory=dict)
    version: int = 0
    """Version of its weights."""
    versioned: bool = False
    """Whether the version is known from a hook."""
    reserved: SampleState | None = None
    """The suspect that runs here alone, or will once the other samples here are done."""
    useful: bool = False
    last_order: int = 0
    failures: int = 0
    """Samples in a row that it lost or did not accept."""
    resting_until: float = float("-inf")
    strays: dict[tuple[str, int], float] = field(default_factory=dict)
    """Unwanted attempts that it still sent items for, and when it was last told to abort them."""

    @property
    def serves(self) -> bool:
        """Whether it gets work at all."""
        return self.open and not self.spare

    @property
    def origin(self) -> Origin:
        """The origin that its chunks carry."""
        return Origin(self.child, self.incarnation, self.version)

    def takes(self, now: float) -> bool:
        """Whether it can be given another ordinary sample."""
        return self.serves and self.reserved is None and len(self.in_flight) < self.limit and self.rested(now)

    def must_be_told(self, attempt: tuple[str, int], now: float) -> bool:
        """Whether to tell it (again) to abort an attempt that it still sends items for."""
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
"""A FIFO queue from whose middle a sample can be removed in constant time."""


class Timers:
    """Deadlines and ends of rests, in order. Requests that have ended are dropped lazily, or in bulk."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request | None]] = []
        self._count = 0

    def add(self, at: float, request: Request | None = None) -> None:
        """Add a time; it is void once ``request`` has ended."""
        self._count += 1
        heappush(self._heap, (at, self._count, request))

    def trim(self, live: int) -> None:
        """Drop entries of ended requests if there are many compared with the live ones."""
        if len(self._heap) > 64 + 4 * live:
            self._heap = [entry for entry in self._heap if entry[2] is None or entry[2].open]
            heapify(self._heap)

    def due(self, now: float) -> list[Request]:
        """Remove the entries that are due, and return their requests."""
        requests = []
        while self._heap and self._heap[0][0] <= now:
            request = heappop(self._heap)[2]
            if request is not None and request.open:
                requests.append(request)
        return requests

    def next(self) -> float | None:
        """Return the next time that is due; None without one."""
        while self._heap and (request := self._heap[0][2]) is not None and not request.open:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None
