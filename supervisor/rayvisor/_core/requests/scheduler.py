"""The scheduler of a pool: every decision about its requests, as a pure state machine.

Each method takes an event and ``now``, and returns the effects to carry out, in order. Nothing in here waits,
reads a clock or does I/O, so a test can drive it through a thousand engine deaths a second.

The rules that keep requests from being lost:

- A request belongs to the scheduler, not to an engine, and the scheduler knows its delivered tokens.
- Every command carries an attempt number; items of an older attempt are dropped, and the engine that still
  sends them is told again to stop.
- A sample that loses its engine takes precedence over new ones. It continues behind its delivered tokens or
  is generated again (``continuation``), unless only its finish was lost: then it ends here.
- Each engine death is a strike for every request in flight there; with two strikes a request runs alone
  (``routing``), and if the engine dies under it there, it fails with ``PoisonRequestError``.
- A timeout and a number of attempts limit each request. When no engine will come back, waiting requests fail.
- An error in the bookkeeping of one request, for instance about an item that makes no sense, fails that
  request only.
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
    """Assigns the samples of requests to engines, and merges what the engines send.

    Parameters
    ----------
    limits
        Limits of the requests.
    rng
        Source of seeds.
    """

    def __init__(self, limits: RequestLimits, rng: Random) -> None:
        self.limits = limits
        self.counts = Counts()
        self.routing = Routing(limits.orders_per_sequence)
        self._rng = rng
        self._requests: dict[str, Request] = {}
        self._samples: dict[str, SampleState] = {}
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
        """Record that an engine is up, or is no longer a spare. A closed scheduler is open again."""
        older = self.routing.engines.get(child)
        if older is not None and older.incarnation > incarnation:
            return []
        if older is not None and older.incarnation < incarnation:
            self._end(older, None)
        self._closed = False
        self.routing.up(child, incarnation, info, spare=spare)
        return self._done(now, route=True)

    def engine_down(self, child: str, incarnation: int, fault: Fault | None, now: float) -> list[Effect]:
        """Record that an engine has ended: by a fault, or stopped (None, or an INTENDED fault)."""
        engine = self.routing.live(child, incarnation)
        if engine is not None:
            self._end(engine, fault)
        return self._done(now, route=True)

    def gate(self, child: str, *, is_open: bool, now: float) -> list[Effect]:
        """Open or close an engine for new work. Its samples in flight stay there."""
        self.routing.gate(child, is_open=is_open)
        return self._done(now, route=True)

    def stale(self, child: str, now: float) -> list[Effect]:
        """Take back the samples that must not continue while weights change. The gate was closed before.

        Spliced samples leave as well, so each of their later tokens is of one known version.
        """
        engine = self.routing.engines.get(child)
        versioned = engine is not None and engine.versioned

        def leaves(request: Request) -> bool:
            return request.on_weights_changed != "splice" or (versioned and request.plan.spliceable)

        return self._take_back(child, f"the weights of {child} change", now, leaves)

    def weights(self, child: str, incarnation: int, version: int) -> None:
        """Record the version of an engine's weights from now on."""
        engine = self.routing.live(child, incarnation)
        if engine is not None:
            engine.version, engine.versioned = version, True

    def withdraw(self, child: str, reason: str, now: float) -> list[Effect]:
        """Take back the samples an engine has in flight, without a strike, and without counting an attempt.

        A sample that could not continue elsewhere stays, and may finish.
        """
        return self._take_back(child, reason, now, lambda _: True)

    def _take_back(
        self, child: str, reason: str, now: float, which: Callable[[Request], bool]
    ) -> list[Effect]:
        engine = self.routing.engines.get(child)
        for state in [] if engine is None else list(engine.in_flight.values()):
            stays = state.request.plan.continuation is Continuation.REFUSE and state.sample.delivered
            if engine is not None and state.engine is engine and not stays and which(state.request):
                state.tries -= 1
                self._give_up(engine, state, reason)
        return self._done(now, route=True)

    def hold(self, child: str, *, held: bool, now: float) -> list[Effect]:
        """Hold the samples an engine has in flight, or let them continue."""
        engine = self.routing.engines.get(child)
        if engine is not None and engine.held is not held:
            engine.held = held
            for state in engine.in_flight.values():
                if state.flowing:
                    self._flow(state)
        return self._done(now)

    def resync(self, child: str, incarnation: int, reason: str, now: float) -> list[Effect]:
        """Take back all samples of a living engine whose items may be missing.

        Neither a strike nor an attempt is counted: the engine has not given them up.
        """
        engine = self.routing.live(child, incarnation)
        if engine is not None:
            for state in list(engine.in_flight.values()):
                if state.engine is engine:  # it has not failed meanwhile together with its request
                    state.tries -= 1
                    self._give_up(engine, state, reason)
        return self._done(now, route=True)

    def close(self, fault: Fault | None, now: float, *, immediately: bool = False) -> list[Effect]:
        """Fail waiting requests, and from now on new ones and those that lose their engine.

        Called when no engine will come back. With ``immediately`` requests in flight fail as well.
        """
        self._closed, self._closed_by = True, fault
        for request in [*self._requests.values()]:
            waits = any(state.place not in (Place.IN_FLIGHT, Place.DONE) for state in request.samples)
            if immediately or waits:
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
        """Accept a request. Its id must be new.

        Raises
        ------
        InvalidRequestError, QueueFullError, NoEngineError
            It was not accepted.
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
        each_params = split(found, self._rng, seeds=limits.seeds)
        self._requests[request_id] = request  # nothing below this line raises
        for index, each in enumerate(each_params):
            self._number += 1
            sample = Sample(f"{request_id}.{index}", index, prompt, each, found)
            state = SampleState(self._number, request, sample)
            request.samples.append(state)
            self._samples[sample.key] = state
            self.routing.wait(state, Place.NEW)
        self._timers.trim(len(self._requests))
        self._timers.add(request.deadline, request)
        self.counts.submitted += 1
        return self._done(now, route=True)

    def taken(self, request_id: str, index: int, tokens: int, now: float) -> list[Effect]:
        """Record that the reader took ``tokens`` tokens of a sample."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        state = request.samples[index]
        state.backlog -= tokens
        if state.flowing or state.backlog > self.limits.fast_at:
            return []
        state.flowing = True
        if state.place is Place.PARKED:
            self._wait_again(state)
            return self._done(now, route=True)
        if state.place is Place.IN_FLIGHT:
            self._flow(state)
        return self._done(now)

    def abandon(self, request_id: str, now: float) -> list[Effect]:
        """Drop a request that is no longer read."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        self._remove(request)
        self.counts.abandoned += 1
        self._out.add(Abandoned(request_id, _final_usage(request)))
        return self._done(now, route=True)

    def usage(self, request_id: str) -> Usage:
        """Return the usage of an open request so far."""
        return self._requests[request_id].usage()

    @property
    def room(self) -> int:
        """How many more samples can be submitted now."""
        return self.limits.queue_limit - len(self.routing.lines[Place.NEW])

    @property
    def samples(self) -> Iterable[SampleState]:
        """States of all samples of open requests."""
        return self._samples.values()

    # Items from engines

    def items(self, child: str, incarnation: int, items: Sequence[HostItem], now: float) -> list[Effect]:
        """Process the items an engine sent. Items that are not about requests are skipped."""
        engine = self.routing.live(child, incarnation)
        freed = False
        for item in items:
            if not isinstance(item, Chunk | Refused | Lost):
                continue
            state = self._samples.get(item.request)
            if (
                engine is None
                or state is None
                or state.engine is not engine
                or state.sample.attempt != item.attempt
            ):
                self._discard(engine, item, now)
            else:
                try:
                    freed |= self._item(engine, state, item, now)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others continue
                    freed = True
                    self._contain(state.request, error)
        return self._done(now, route=freed)

    def _item(
        self, engine: EnginePlace, state: SampleState, item: Chunk | Refused | Lost, now: float
    ) -> bool:
        """Process an item of a sample in flight, and return whether the engine may have room now."""
        if isinstance(item, Chunk):
            return self._chunk(engine, state, item)
        if isinstance(item, Refused):
            self._fail(state.request, failures.refused(state.request, item))
        else:
            self._rest(engine, now)
            self._lose(engine, state, f"{engine.child} gave it up: {item.reason}")
        return True

    def send_failed(
        self, child: str, incarnation: int, attempts: Iterable[Attempt], reason: str, now: float
    ) -> list[Effect]:
        """Requeue samples whose commands could not be sent, and let the engine rest briefly."""
        engine = self.routing.live(child, incarnation)
        for key, attempt in attempts:
            state = self._samples.get(key)
            if engine is None or state is None or state.engine is not engine:
                continue
            if state.sample.attempt != attempt:
                continue
            if state.sample.started:  # it arrived nevertheless
                continue
            state.tries -= 1
            self._give_up(engine, state, f"{child} could not be sent it: {reason}")
            self._rest(engine, now)
        return self._done(now, route=True)

    def tick(self, now: float) -> list[Effect]:
        """Fail requests past their deadline, and give work to engines that have rested."""
        for request in self._timers.due(now):
            # One request can have two entries; the first one may have ended it.
            if request.open and now >= request.deadline:
                self._fail(request, failures.overdue(request))
        self._announced = None
        return self._done(now, route=True)

    # Inside

    def _done(self, now: float, *, route: bool = False) -> list[Effect]:
        if route:
            for state, engine in self.routing.assign(now):
                try:
                    self._order(engine, state)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others continue
                    self._contain(state.request, error)
        effects = self._out.take()
        at = self._timers.next()
        if at is not None and (self._announced is None or at < self._announced):
            self._announced = at
            effects.append(NextDeadline(at))
        return effects

    def _order(self, engine: EnginePlace, state: SampleState) -> None:
        if self._continues_in(engine, state):
            state.tries += 1
            self._out.order(engine.child, engine.incarnation, state.sample.order())

    def _continues_in(self, engine: EnginePlace, state: SampleState) -> bool:
        """Whether a sample continues in an engine with other weights than its delivered tokens."""
        request, sample = state.request, state.sample
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

    def _chunk(self, engine: EnginePlace, state: SampleState, chunk: Chunk) -> bool:
        sample, request = state.sample, state.request
        accepted = sample.accept(chunk, engine.origin)
        if accepted is None:
            return False
        engine.failures = 0
        if accepted.divergence is not None:
            self.counts.divergences += 1
            if not self._continues_after(engine, state, accepted.divergence):
                return True
        if accepted.chunk is None:
            return False
        self._deliver(state, accepted.chunk.token_ids, Deliver(request.id, accepted.chunk))
        if accepted.chunk.token_ids and not engine.useful:
            engine.useful = True
            self._out.add(MadeProgress(engine.child, engine.incarnation))
        if sample.finished:
            self._finish(state)
            return True
        if state.flowing and state.backlog >= self.limits.slow_at:
            state.flowing = False
            self._flow(state)
        return False

    def _continues_after(self, engine: EnginePlace, state: SampleState, found: Divergence) -> bool:
        """Whether the current attempt is still useful."""
        request, sample = state.request, state.sample
        if request.splices and found.what == "text":
            return True
        reason = "on_divergence='fail'"
        if request.splices and not request.plan.spliceable:
            reason = f"with {request.plan.reason} it cannot continue from the delivered tokens either"
        elif request.splices and not sample.splice():
            reason = (
                "the tokens of its prompt are not known, so it cannot continue from the delivered tokens "
                "either"
            )
        elif request.splices:
            self._abort(state)
            self._lose(engine, state, str(found))
            return False
        self._fail(request, failures.diverged(request, found, reason))
        return False

    def _deliver(self, state: SampleState, tokens: Sequence[int], deliver: Deliver) -> None:
        state.backlog += len(tokens)
        self.counts.tokens += len(tokens)
        self._out.add(deliver)

    def _flow(self, state: SampleState) -> None:
        engine, sample = state.engine, state.sample
        if engine is not None:
            flowing = state.flowing and not engine.held
            self._out.add(Flow(engine.child, engine.incarnation, sample.key, sample.attempt, flowing))

    def _finish(self, state: SampleState) -> None:
        request = state.request
        self.routing.leave(state)
        if all(each.sample.finished for each in request.samples):
            completion = request.completion()
            self._remove(request)
            self.counts.finished += 1
            self._out.add(Finish(request.id, completion))

    def _discard(self, engine: EnginePlace | None, item: Chunk | Refused | Lost, now: float) -> None:
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
            state = engine.reserved
            self.routing.leave(state)
            self.routing.wait(state, Place.SUSPECT)
        states = sorted(engine.in_flight.values(), key=lambda state: state.number)
        if fault is not None and fault.fault_class is not FaultClass.INTENDED:
            self._strike(engine, states, fault)
        reason = str(fault) if fault is not None else f"{engine.child} was stopped"
        for state in states:
            if state.engine is engine:  # it has not failed meanwhile together with its request
                self._give_up(engine, state, reason)

    def _strike(self, engine: EnginePlace, states: Sequence[SampleState], fault: Fault) -> None:
        for request in {state.request.id: state.request for state in states}.values():
            request.strikes += 1
            request.fault = fault
            if request.suspect:
                self._timers.add(request.quarantine_at, request)
            for state in request.samples:
                if request.suspect and state.place in (Place.NEW, Place.RETURNED):
                    self.routing.leave(state)
                    self.routing.wait(state, Place.SUSPECT)
        alone = engine.reserved
        if alone is not None and alone.place is Place.IN_FLIGHT:
            self._out.add(MadeProgress(engine.child, engine.incarnation))
            request = alone.request
            try:
                if not alone.sample.due(engine.info):
                    self._fail(request, failures.poison(request, fault))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others continue
                self._contain(request, error)

    def _give_up(self, engine: EnginePlace, state: SampleState, reason: str) -> None:
        """Abort a sample, and take it away from its engine; an error in that fails its request only."""
        try:
            self._abort(state)
            self._lose(engine, state, reason)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others continue
            self._contain(state.request, error)

    def _lose(self, engine: EnginePlace, state: SampleState, reason: str) -> None:
        """Take a sample away from its engine, and finish, fail or requeue it."""
        request, sample = state.request, state.sample
        self.counts.moved += 1
        restored = sample.finish_if_due(engine.info, engine.origin)
        if restored is not None:
            self.counts.finishes_restored += 1
            self._out.add(Deliver(request.id, restored))
            self._finish(state)
            return
        self.routing.leave(state)
        if request.plan.continuation is Continuation.REFUSE and sample.delivered:
            self._fail(request, failures.unmovable(request))
        elif self._closed:
            self._fail(request, NoEngineError(request.id, self._closed_by))
        elif state.tries >= request.max_attempts:
            self._fail(request, failures.exhausted(request, reason))
        elif state.backlog > self.limits.fast_at:
            state.flowing, state.place = False, Place.PARKED
        else:
            state.flowing = True
            self._wait_again(state)

    def _wait_again(self, state: SampleState) -> None:
        self.routing.wait(state, Place.SUSPECT if state.request.suspect else Place.RETURNED)

    def _rest(self, engine: EnginePlace, now: float) -> None:
        if engine.rested(now):
            self._timers.add(self.routing.rest(engine, now))

    def _abort(self, state: SampleState) -> None:
        engine = state.engine
        if engine is None or state.place is not Place.IN_FLIGHT:
            return
        if self.routing.engines.get(engine.child) is engine:
            self._out.abort(engine.child, engine.incarnation, (state.sample.key, state.sample.attempt))

    def _contain(self, request: Request, error: Exception) -> None:
        """Fail the request whose bookkeeping raised this error."""
        self._fail(request, failures.internal(request, error))

    def _fail(self, request: Request, error: RequestError) -> None:
        """Fail a request. One that has ended already stays as it is."""
        if not request.open:
            return
        self._remove(request)
        self.counts.failed += 1
        self._out.add(Fail(request.id, error, _final_usage(request)))

    def _remove(self, request: Request) -> None:
        request.open = False
        self._requests.pop(request.id, None)
        for state in request.samples:
            self._abort(state)
            self.routing.leave(state)
            self._samples.pop(state.sample.key, None)


def _final_usage(request: Request) -> Usage:
    try:
        return request.usage()
    except Exception:  # noqa: BLE001 - an engine sent something that cannot be counted; the end must be told
        return Usage(0, 0)
