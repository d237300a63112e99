"""The front of a pool: every decision about its requests, as a pure state machine.

Each method takes what happened and ``now``, and returns the effects to carry out, in order. Nothing in
here waits, reads a clock or does I/O, so a test can drive it through a thousand engine deaths a second.

The rules that keep requests from being lost:

- A request belongs to the front, not to an engine. What has been delivered of it is known here.
- Every order carries an attempt number; whatever comes for an older one is dropped, and the engine that
  still sends it is told again to stop.
- A sample that loses its engine goes before new ones, behind its delivered tokens or from the start
  (``policy``), unless only its finish was lost: then it ends here.
- Each engine death is a strike for every request in flight there; from two on a request runs alone
  (``routing``), and if the engine dies under it there, it fails with ``PoisonRequestError``.
- A deadline and a number of attempts bound each request. When no engine will come back, what waits fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

from rayvisor._core.protocol.wire import Chunk, EngineInfo, HostItem, Lost, Prompt, Refused
from rayvisor._core.requests import failures
from rayvisor._core.requests.continuation import Continuation, plan, split
from rayvisor._core.requests.effects import (
    Abandoned,
    Attempt,
    Deliver,
    Effect,
    Fail,
    Finish,
    Flow,
    MadeProgress,
    NextDeadline,
    Outgoing,
)
from rayvisor._core.requests.errors import InvalidRequestError, NoEngineError, QueueFullError, RequestError
from rayvisor._core.requests.limits import Counts, RequestLimits, check_bounds
from rayvisor._core.requests.results import Divergence, Usage
from rayvisor._core.requests.routing import Routing
from rayvisor._core.requests.sample import Sample
from rayvisor._core.requests.state import EnginePlace, Place, Request, SampleState, Timers
from rayvisor.faults import Fault, FaultClass

__all__ = ["RequestScheduler"]


class RequestScheduler:
    """Requests on one side, engines on the other.

    Parameters
    ----------
    limits
        What bounds the requests.
    rng
        Where seeds come from.
    """

    def __init__(self, limits: RequestLimits, rng: Random) -> None:
        self.limits = limits
        self.counts = Counts()
        self.routing = Routing(limits.orders_per_sequence)
        self._rng = rng
        self._requests: dict[str, Request] = {}
        self._parts: dict[str, SampleState] = {}
        self._timers = Timers()
        self._closed = False
        self._closed_by: Fault | None = None
        self._announced: float | None = None
        self._out = Outgoing()
        self._number = 0

    # Engines

    def engine_up(
        self, child: str, incarnation: int, info: EngineInfo, now: float, *, spare: bool = False
    ) -> list[Effect]:
        """Note that an engine is up, or that it is a spare no more. A closed front is open again."""
        older = self.routing.engines.get(child)
        if older is not None and older.incarnation > incarnation:
            return []
        if older is not None and older.incarnation < incarnation:
            self._end(older, None)
        self._closed = False
        self.routing.up(child, incarnation, info, spare=spare)
        return self._done(now, route=True)

    def engine_down(self, child: str, incarnation: int, fault: Fault | None, now: float) -> list[Effect]:
        """Note that an engine has ended: by a fault, or as it was asked to (None, or an INTENDED one)."""
        engine = self.routing.live(child, incarnation)
        if engine is not None:
            self._end(engine, fault)
        return self._done(now, route=True)

    def gate(self, child: str, *, is_open: bool, now: float) -> list[Effect]:
        """Let an engine have new work, or not. What it has in flight stays there."""
        self.routing.gate(child, is_open=is_open)
        return self._done(now, route=True)

    def stale(self, child: str, now: float) -> list[Effect]:
        """Take back what must not go on while weights change. The engine's gate has been closed before.

        What is spliced leaves too: what comes of it afterwards is of one version, from its first token on.
        """
        engine = self.routing.engines.get(child)
        versioned = engine is not None and engine.versioned

        def leaves(request: Request) -> bool:
            return request.on_weights_changed != "splice" or (versioned and request.plan.spliceable)

        return self._take_back(child, f"{child} is to have other weights", now, leaves)

    def weights(self, child: str, incarnation: int, version: int) -> None:
        """Note which weights an engine has from now on."""
        engine = self.routing.live(child, incarnation)
        if engine is not None:
            engine.version, engine.versioned = version, True

    def withdraw(self, child: str, reason: str, now: float) -> list[Effect]:
        """Take back what an engine has in flight, without a strike, and without an attempt spent.

        What could not go on elsewhere stays: it may finish.
        """
        return self._take_back(child, reason, now, lambda _: True)

    def _take_back(
        self, child: str, reason: str, now: float, which: Callable[[Request], bool]
    ) -> list[Effect]:
        engine = self.routing.engines.get(child)
        for part in [] if engine is None else list(engine.in_flight.values()):
            stays = part.request.plan.continuation is Continuation.REFUSE and part.sample.delivered
            if engine is not None and part.engine is engine and not stays and which(part.request):
                part.tries -= 1
                self._abort(part)
                self._lose(engine, part, reason)
        return self._done(now, route=True)

    def hold(self, child: str, *, held: bool, now: float) -> list[Effect]:
        """Hold what an engine has in flight where it is, or let it go on."""
        engine = self.routing.engines.get(child)
        if engine is not None and engine.held is not held:
            engine.held = held
            for part in engine.in_flight.values():
                if part.flowing:
                    self._flow(part)
        return self._done(now)

    def resync(self, child: str, incarnation: int, reason: str, now: float) -> list[Effect]:
        """Items of a living engine may be missing: take back all it has in flight, without a strike."""
        engine = self.routing.live(child, incarnation)
        if engine is not None:
            for part in list(engine.in_flight.values()):
                self._abort(part)
                self._lose(engine, part, reason)
        return self._done(now, route=True)

    def close(self, fault: Fault | None, now: float, *, immediately: bool = False) -> list[Effect]:
        """No engine will come back: fail what waits, and what comes or loses its engine from now on.

        With ``immediately`` what is in flight fails too.
        """
        self._closed, self._closed_by = True, fault
        for request in [*self._requests.values()]:
            if immediately or any(part.place not in (Place.IN_FLIGHT, Place.DONE) for part in request.parts):
                self._fail(request, NoEngineError(request.id, fault))
        return self._done(now)

    # Requests

    def submit(
        self,
        request_id: str,
        prompt: Prompt,
        params: Mapping[str, Any] | None,
        now: float,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: str | None = None,
        on_weights_changed: str | None = None,
    ) -> list[Effect]:
        """Take a request in. Its id must be new.

        Raises
        ------
        InvalidRequestError, QueueFullError, NoEngineError
            It was not taken in.
        """
        found = plan(params, prompt)
        limits = self.limits
        budget = limits.timeout if timeout is None else timeout
        tries = limits.max_attempts if max_attempts is None else max_attempts
        on_difference = limits.on_divergence if on_divergence is None else on_divergence
        on_change = limits.on_weights_changed if on_weights_changed is None else on_weights_changed
        check_bounds(budget, tries, on_difference, on_change, error=InvalidRequestError)
        if found.n > limits.queue_limit:
            raise InvalidRequestError(
                "params['n']", found.n, f"must be at most queue_limit={limits.queue_limit}"
            )
        if self._closed:
            raise NoEngineError(request_id, self._closed_by)
        if self.room < found.n:
            raise QueueFullError(limits.queue_limit - self.room, limits.queue_limit, found.n)
        request = Request(
            request_id,
            found,
            now,
            budget,
            tries,
            splices=on_difference == "splice",
            on_weights_changed=on_change,
        )
        self._requests[request_id] = request
        for index, each in enumerate(split(found, self._rng, seeds=limits.seeds)):
            self._number += 1
            sample = Sample(f"{request_id}.{index}", index, prompt, each, found)
            part = SampleState(self._number, request, sample)
            request.parts.append(part)
            self._parts[sample.key] = part
            self.routing.wait(part, Place.NEW)
        self._timers.trim(len(self._requests))
        self._timers.add(request.deadline, request)
        self.counts.submitted += 1
        return self._done(now, route=True)

    def taken(self, request_id: str, index: int, tokens: int, now: float) -> list[Effect]:
        """Note that the reader took ``tokens`` tokens of a sample."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        part = request.parts[index]
        part.backlog -= tokens
        if part.flowing or part.backlog > self.limits.fast_at:
            return []
        part.flowing = True
        if part.place is Place.PARKED:
            self._wait_again(part)
            return self._done(now, route=True)
        if part.place is Place.IN_FLIGHT:
            self._flow(part)
        return self._done(now)

    def abandon(self, request_id: str, now: float) -> list[Effect]:
        """Drop a request that nobody reads any more."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        self._remove(request)
        self.counts.left += 1
        self._out.add(Abandoned(request_id, request.usage()))
        return self._done(now, route=True)

    def usage(self, request_id: str) -> Usage:
        """What an open request has used so far."""
        return self._requests[request_id].usage()

    @property
    def room(self) -> int:
        """How many more samples may be submitted now."""
        return self.limits.queue_limit - len(self.routing.lines[Place.NEW])

    @property
    def parts(self) -> Iterable[SampleState]:
        """All samples of the requests that are open."""
        return self._parts.values()

    # What engines send

    def items(self, child: str, incarnation: int, items: Sequence[HostItem], now: float) -> list[Effect]:
        """Take in what an engine sent. Items that are not about requests are passed over."""
        engine = self.routing.live(child, incarnation)
        freed = False
        for item in items:
            if not isinstance(item, Chunk | Refused | Lost):
                continue
            part = self._parts.get(item.request)
            if (
                engine is None
                or part is None
                or part.engine is not engine
                or part.sample.attempt != item.attempt
            ):
                self._late(engine, item, now)
            elif isinstance(item, Chunk):
                freed |= self._chunk(engine, part, item)
            elif isinstance(item, Refused):
                freed = True
                self._fail(part.request, failures.refused(part.request, item))
            else:
                freed = True
                self._rest(engine, now)
                self._lose(engine, part, f"{child} gave it up: {item.reason}")
        return self._done(now, route=freed)

    def send_failed(
        self, child: str, incarnation: int, attempts: Iterable[Attempt], reason: str, now: float
    ) -> list[Effect]:
        """Orders could not be given to an engine: they count as not sent, and it gets a short rest."""
        engine = self.routing.live(child, incarnation)
        for key, attempt in attempts:
            part = self._parts.get(key)
            if engine is None or part is None or part.engine is not engine or part.sample.attempt != attempt:
                continue
            if part.sample.started:  # it arrived all the same
                continue
            part.tries -= 1
            self._abort(part)
            self._lose(engine, part, f"{child} could not be given it: {reason}")
            self._rest(engine, now)
        return self._done(now, route=True)

    def tick(self, now: float) -> list[Effect]:
        """Time has come: fail what is past its deadline, look for work for engines that have rested."""
        for request in self._timers.due(now):
            if now >= request.deadline:
                self._fail(request, failures.overdue(request))
        self._announced = None
        return self._done(now, route=True)

    # Inside

    def _done(self, now: float, *, route: bool = False) -> list[Effect]:
        if route:
            for part, engine in self.routing.assign(now):
                if not self._goes_on_in(engine, part):
                    continue
                part.tries += 1
                self._out.order(engine.child, engine.incarnation, part.sample.order())
        effects = self._out.take()
        at = self._timers.next()
        if at is not None and (self._announced is None or at < self._announced):
            self._announced = at
            effects.append(NextDeadline(at))
        return effects

    def _goes_on_in(self, engine: EnginePlace, part: SampleState) -> bool:
        """Whether a sample goes on in an engine that may have other weights than its delivered tokens."""
        request, sample = part.request, part.sample
        if not sample.versions or sample.versions[-1] == engine.version:
            return True
        if request.on_weights_changed == "fail":
            self._fail(request, failures.weights_changed(request, sample.versions[-1], engine.version))
            return False
        if request.on_weights_changed == "restart":
            sample.restart()
        elif request.plan.spliceable:
            sample.splice()
        return True

    def _chunk(self, engine: EnginePlace, part: SampleState, chunk: Chunk) -> bool:
        sample, request = part.sample, part.request
        accepted = sample.accept(chunk, engine.origin)
        if accepted is None:
            return False
        engine.failures = 0
        if accepted.divergence is not None:
            self.counts.divergences += 1
            if not self._goes_on_after(engine, part, accepted.divergence):
                return True
        if accepted.chunk is None:
            return False
        self._deliver(part, accepted.chunk.token_ids, Deliver(request.id, accepted.chunk))
        if accepted.chunk.token_ids and not engine.useful:
            engine.useful = True
            self._out.add(MadeProgress(engine.child, engine.incarnation))
        if sample.finished:
            self._finish(part)
            return True
        if part.flowing and part.backlog >= self.limits.slow_at:
            part.flowing = False
            self._flow(part)
        return False

    def _goes_on_after(self, engine: EnginePlace, part: SampleState, found: Divergence) -> bool:
        """Whether the present attempt is still of use."""
        request, sample = part.request, part.sample
        if request.splices and found.what == "text":
            return True
        reason = "on_divergence='fail'"
        if request.splices and not request.plan.spliceable:
            reason = f"with {request.plan.reason} it cannot go on from the delivered tokens either"
        elif request.splices and not sample.splice():
            reason = (
                "the tokens of its prompt are not known, so it cannot go on from the delivered tokens either"
            )
        elif request.splices:
            self._abort(part)
            self._lose(engine, part, str(found))
            return False
        self._fail(request, failures.diverged(request, found, reason))
        return False

    def _deliver(self, part: SampleState, tokens: Sequence[int], deliver: Deliver) -> None:
        part.backlog += len(tokens)
        self.counts.tokens += len(tokens)
        self._out.add(deliver)

    def _flow(self, part: SampleState) -> None:
        engine, sample = part.engine, part.sample
        if engine is not None:
            flowing = part.flowing and not engine.held
            self._out.add(Flow(engine.child, engine.incarnation, sample.key, sample.attempt, flowing))

    def _finish(self, part: SampleState) -> None:
        request = part.request
        self.routing.leave(part)
        if all(each.sample.finished for each in request.parts):
            self._remove(request)
            self.counts.finished += 1
            self._out.add(Finish(request.id, request.completion()))

    def _late(self, engine: EnginePlace | None, item: Chunk | Refused | Lost, now: float) -> None:
        self.counts.late_items += 1
        ended = not isinstance(item, Chunk) or item.finish_reason is not None
        if engine is None or ended:
            return
        if engine.must_be_told((item.request, item.attempt), now):
            self._out.abort(engine.child, engine.incarnation, (item.request, item.attempt))

    def _end(self, engine: EnginePlace, fault: Fault | None) -> None:
        del self.routing.engines[engine.child]
        engine.open = False
        if engine.reserved is not None and engine.reserved.place is Place.RESERVED:
            part = engine.reserved
            self.routing.leave(part)
            self.routing.wait(part, Place.SUSPECT)
        parts = sorted(engine.in_flight.values(), key=lambda part: part.number)
        if fault is not None and fault.fault_class is not FaultClass.INTENDED:
            self._strike(engine, parts, fault)
        reason = str(fault) if fault is not None else f"{engine.child} was stopped"
        for part in parts:
            if part.engine is engine:  # not failed meanwhile together with its request
                self._lose(engine, part, reason)

    def _strike(self, engine: EnginePlace, parts: Sequence[SampleState], fault: Fault) -> None:
        for request in {part.request.id: part.request for part in parts}.values():
            request.strikes += 1
            request.fault = fault
            if request.suspect:
                self._timers.add(request.quarantine_at, request)
            for part in request.parts:
                if request.suspect and part.place in (Place.NEW, Place.RETURNED):
                    self.routing.leave(part)
                    self.routing.wait(part, Place.SUSPECT)
        alone = engine.reserved
        if alone is not None and alone.place is Place.IN_FLIGHT:
            self._out.add(MadeProgress(engine.child, engine.incarnation))
            request = alone.request
            if not alone.sample.due(engine.info):
                self._fail(request, failures.poison(request, fault))

    def _lose(self, engine: EnginePlace, part: SampleState, reason: str) -> None:
        """Take a sample away from its engine, and say what becomes of it."""
        request, sample = part.request, part.sample
        self.counts.moved += 1
        restored = sample.finish_if_due(engine.info, engine.origin)
        if restored is not None:
            self.counts.finishes_restored += 1
            self._out.add(Deliver(request.id, restored))
            self._finish(part)
            return
        self.routing.leave(part)
        if request.plan.continuation is Continuation.REFUSE and sample.delivered:
            self._fail(request, failures.unmovable(request))
        elif self._closed:
            self._fail(request, NoEngineError(request.id, self._closed_by))
        elif part.tries >= request.max_attempts:
            self._fail(request, failures.exhausted(request, reason))
        elif part.backlog > self.limits.fast_at:
            part.flowing, part.place = False, Place.PARKED
        else:
            part.flowing = True
            self._wait_again(part)

    def _wait_again(self, part: SampleState) -> None:
        self.routing.wait(part, Place.SUSPECT if part.request.suspect else Place.RETURNED)

    def _rest(self, engine: EnginePlace, now: float) -> None:
        if engine.rested(now):
            self._timers.add(self.routing.rest(engine, now))

    def _abort(self, part: SampleState) -> None:
        engine = part.engine
        if engine is None or part.place is not Place.IN_FLIGHT:
            return
        if self.routing.engines.get(engine.child) is engine:
            self._out.abort(engine.child, engine.incarnation, (part.sample.key, part.sample.attempt))

    def _fail(self, request: Request, error: RequestError) -> None:
        self._remove(request)
        self.counts.failed += 1
        self._out.add(Fail(request.id, error, request.usage()))

    def _remove(self, request: Request) -> None:
        request.open = False
        del self._requests[request.id]
        for part in request.parts:
            self._abort(part)
            self.routing.leave(part)
            del self._parts[part.sample.key]
