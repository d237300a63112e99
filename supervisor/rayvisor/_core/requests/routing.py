"""Routing: which sample goes to which engine, and in which order.

Samples that lost their engine take precedence over new ones; each goes to the engine with the fewest in
flight. A suspect, a request with two strikes or more, gets an engine of its own: never a spare, and never the
last engine that serves other requests. With a single engine up, a suspect runs there once no other request
has or wants work. If others keep the engine busy all the time, the suspect runs there alone when half of its
timeout is over, since it could only miss its deadline otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from rayvisor._core.protocol.wire import EngineInfo
from rayvisor._core.requests.state import EnginePlace, Line, Place, SampleState

__all__ = ["Routing"]

_REST_FIRST, _REST_LONGEST = 0.05, 5.0


class Routing:
    """The engines that are up, and the queues of samples that wait for them.

    Parameters
    ----------
    orders_per_sequence
        How many samples an engine is given for each sequence it runs at a time: more than one keeps it busy.
    """

    def __init__(self, orders_per_sequence: float) -> None:
        self._orders_per_sequence = orders_per_sequence
        self._gates: dict[str, bool] = {}
        self._sent = 0
        self.engines: dict[str, EnginePlace] = {}
        self.lines: dict[Place, Line] = {
            Place.RETURNED: OrderedDict(),
            Place.NEW: OrderedDict(),
            Place.SUSPECT: OrderedDict(),
        }

    def up(self, child: str, incarnation: int, info: EngineInfo, *, spare: bool) -> EnginePlace:
        """Record that an engine is up, or update its record."""
        engine = self.engines.get(child)
        if engine is None or engine.incarnation != incarnation:
            limit = max(1, int(info.max_num_seqs * self._orders_per_sequence))
            engine = EnginePlace(
                child,
                incarnation,
                info,
                limit,
                open=self._gates.get(child, True),
            )
            self.engines[child] = engine
        engine.info, engine.spare = info, spare
        return engine

    def live(self, child: str, incarnation: int) -> EnginePlace | None:
        """Return the engine, or None if another incarnation, or none, is up."""
        engine = self.engines.get(child)
        return engine if engine is not None and engine.incarnation == incarnation else None

    def gate(self, child: str, *, is_open: bool) -> None:
        """Open or close a child for work; this also holds for its next incarnations."""
        self._gates[child] = is_open
        engine = self.engines.get(child)
        if engine is None:
            return
        if is_open and not engine.open:
            engine.failures, engine.resting_until = 0, float("-inf")  # its earlier failures no longer count
        engine.open = is_open

    def rest(self, engine: EnginePlace, now: float) -> float:
        """Let an engine that lost a sample rest, longer each time; return when the rest ends."""
        delay = min(_REST_LONGEST, _REST_FIRST * 2 ** min(engine.failures, 10))
        engine.failures += 1
        engine.resting_until = max(engine.resting_until, now + delay)
        return engine.resting_until

    def wait(self, state: SampleState, place: Place) -> None:
        """Put a sample at the end of a queue."""
        state.place = place
        self.lines[place][state.sample.key] = state

    def leave(self, state: SampleState) -> None:
        """Remove a sample from its queue, its engine and its reservation."""
        line = self.lines.get(state.place)
        if line is not None:
            line.pop(state.sample.key, None)
        engine = state.engine
        if engine is not None:
            engine.in_flight.pop(state.sample.key, None)
            if engine.reserved is state:
                engine.reserved = None
            state.engine = None
        state.place = Place.DONE

    def assign(self, now: float) -> Iterator[tuple[SampleState, EnginePlace]]:
        """Assign samples to engines. Each yielded sample is in flight from then on."""
        if self.lines[Place.SUSPECT] or any(engine.reserved for engine in self.engines.values()):
            yield from self._quarantine(now)
        for place in (Place.RETURNED, Place.NEW):
            line = self.lines[place]
            while line:
                engine = self._least_busy(now)
                if engine is None:
                    return
                _, state = line.popitem(last=False)
                yield self._send(state, engine)

    def _least_busy(self, now: float) -> EnginePlace | None:
        able = [engine for engine in self.engines.values() if engine.takes(now)]
        return min(able, key=_busy, default=None)

    def _send(self, state: SampleState, engine: EnginePlace) -> tuple[SampleState, EnginePlace]:
        self._sent += 1
        engine.last_order = self._sent
        engine.in_flight[state.sample.key] = state
        state.engine, state.place = engine, Place.IN_FLIGHT
        return state, engine

    def _quarantine(self, now: float) -> Iterator[tuple[SampleState, EnginePlace]]:
        suspects = self.lines[Place.SUSPECT]
        for engine in self.engines.values():
            state = engine.reserved
            if state is None or state.place is not Place.RESERVED:
                continue
            if not engine.serves or not self._spared(engine, state, now):
                self.leave(state)
                self.wait(state, Place.SUSPECT)
                suspects.move_to_end(state.sample.key, last=False)
            elif not engine.in_flight and engine.rested(now):
                yield self._send(state, engine)
        while suspects:
            state = next(iter(suspects.values()))
            able = [
                engine
                for engine in self.engines.values()
                if engine.serves
                and engine.reserved is None
                and engine.rested(now)
                and self._spared(engine, state, now)
            ]
            if not able:
                return
            engine = min(able, key=_busy)
            self.leave(state)
            engine.reserved, state.engine, state.place = state, engine, Place.RESERVED
            if not engine.in_flight:
                yield self._send(state, engine)

    def _spared(self, engine: EnginePlace, state: SampleState, now: float) -> bool:
        """Whether other requests can do without this engine for a while."""
        others = [other for other in self.engines.values() if other is not engine]
        if any(other.serves and other.reserved is None for other in others):
            return True
        if any(other.reserved is not None for other in others):
            return False
        return now >= state.request.quarantine_at or not self._others_want_work()

    def _others_want_work(self) -> bool:
        if self.lines[Place.RETURNED] or self.lines[Place.NEW]:
            return True
        return any(
            state is not engine.reserved
            for engine in self.engines.values()
            for state in engine.in_flight.values()
        )


def _busy(engine: EnginePlace) -> tuple[int, int]:
    return len(engine.in_flight), engine.last_order
