"""Which sample goes to which engine, and in which order.

Samples that lost their engine go before new ones; each goes to the engine with the least in flight. A
suspect, a request with two strikes or more, goes to an engine of its own: never to a spare, and never
to the last one that serves others. What "the last one" means where there is no choice: with a single
engine up, a suspect runs there once nobody else has or wants work; should others keep it busy all the
time, the suspect is let in, alone, when half of its time is over, or it could only miss its deadline.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from rayvisor._core.protocol.wire import EngineInfo
from rayvisor._core.requests.state import EnginePlace, Line, Place, SampleState

__all__ = ["Routing"]

_REST_FIRST, _REST_LONGEST = 0.05, 5.0


class Routing:
    """The engines that are up, the waiting lines, and who is next.

    Parameters
    ----------
    orders_per_sequence
        How many orders an engine is given for each sequence it runs at a time: more than one keeps it busy.
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
        """Note an engine that is up, or what is new about it."""
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
        """Return the engine, unless another incarnation, or none, is up."""
        engine = self.engines.get(child)
        return engine if engine is not None and engine.incarnation == incarnation else None

    def gate(self, child: str, *, is_open: bool) -> None:
        """Let a child have work, or not; it holds for its next incarnations too."""
        self._gates[child] = is_open
        engine = self.engines.get(child)
        if engine is None:
            return
        if is_open and not engine.open:
            engine.failures, engine.resting_until = 0, float("-inf")  # what it did not keep is past
        engine.open = is_open

    def rest(self, engine: EnginePlace, now: float) -> float:
        """Give an engine that did not keep an order a rest, longer each time; returns when it ends."""
        delay = min(_REST_LONGEST, _REST_FIRST * 2 ** min(engine.failures, 10))
        engine.failures += 1
        engine.resting_until = max(engine.resting_until, now + delay)
        return engine.resting_until

    def wait(self, part: SampleState, place: Place) -> None:
        """Put a sample at the end of a line."""
        part.place = place
        self.lines[place][part.sample.key] = part

    def leave(self, part: SampleState) -> None:
        """Take a sample away from wherever it is: its line, its engine, its reservation."""
        line = self.lines.get(part.place)
        if line is not None:
            line.pop(part.sample.key, None)
        engine = part.engine
        if engine is not None:
            engine.in_flight.pop(part.sample.key, None)
            if engine.reserved is part:
                engine.reserved = None
            part.engine = None
        part.place = Place.DONE

    def assign(self, now: float) -> Iterator[tuple[SampleState, EnginePlace]]:
        """Say who goes where now. Each sample said is in flight from then on."""
        if self.lines[Place.SUSPECT] or any(engine.reserved for engine in self.engines.values()):
            yield from self._quarantine(now)
        for place in (Place.RETURNED, Place.NEW):
            line = self.lines[place]
            while line:
                engine = self._least_busy(now)
                if engine is None:
                    return
                _, part = line.popitem(last=False)
                yield self._send(part, engine)

    def _least_busy(self, now: float) -> EnginePlace | None:
        able = [engine for engine in self.engines.values() if engine.takes(now)]
        return min(able, key=_busy, default=None)

    def _send(self, part: SampleState, engine: EnginePlace) -> tuple[SampleState, EnginePlace]:
        self._sent += 1
        engine.last_order = self._sent
        engine.in_flight[part.sample.key] = part
        part.engine, part.place = engine, Place.IN_FLIGHT
        return part, engine

    def _quarantine(self, now: float) -> Iterator[tuple[SampleState, EnginePlace]]:
        suspects = self.lines[Place.SUSPECT]
        for engine in self.engines.values():
            part = engine.reserved
            if part is None or part.place is not Place.RESERVED:
                continue
            if not engine.serves or not self._spared(engine, part, now):
                self.leave(part)
                self.wait(part, Place.SUSPECT)
                suspects.move_to_end(part.sample.key, last=False)
            elif not engine.in_flight and engine.rested(now):
                yield self._send(part, engine)
        while suspects:
            part = next(iter(suspects.values()))
            able = [
                engine
                for engine in self.engines.values()
                if engine.serves
                and engine.reserved is None
                and engine.rested(now)
                and self._spared(engine, part, now)
            ]
            if not able:
                return
            engine = min(able, key=_busy)
            self.leave(part)
            engine.reserved, part.engine, part.place = part, engine, Place.RESERVED
            if not engine.in_flight:
                yield self._send(part, engine)

    def _spared(self, engine: EnginePlace, part: SampleState, now: float) -> bool:
        """Whether others can do without this engine for a while."""
        others = [other for other in self.engines.values() if other is not engine]
        if any(other.serves and other.reserved is None for other in others):
            return True
        if any(other.reserved is not None for other in others):
            return False
        return now >= part.request.quarantine_at or not self._others_want_work()

    def _others_want_work(self) -> bool:
        if self.lines[Place.RETURNED] or self.lines[Place.NEW]:
            return True
        return any(
            part is not engine.reserved
            for engine in self.engines.values()
            for part in engine.in_flight.values()
        )


def _busy(engine: EnginePlace) -> tuple[int, int]:
    return len(engine.in_flight), engine.last_order
