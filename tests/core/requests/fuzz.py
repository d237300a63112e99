"""Random events for a scheduler, in any order, also those that make no sense.

Run it by hand with a number of steps and a seed::

    python -m tests.core.requests.fuzz 1000000 7
"""

from __future__ import annotations

import sys
from random import Random
from typing import Any

from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, HostItem, Lost, Refused
from rayvisor._core.requests.effects import (
    Abandoned,
    Abort,
    Deliver,
    Effect,
    Fail,
    Finish,
    NextDeadline,
    SendCommands,
)
from rayvisor._core.requests.errors import NoEngineError, QueueFullError
from rayvisor._core.requests.limits import RequestLimits
from rayvisor._core.requests.scheduler import RequestScheduler
from rayvisor.faults import Cause, FaultClass
from tests.core.requests.oracle import fault_of

CHILDREN = ("pool/1", "pool/2", "pool/3")
LIMITS = RequestLimits(queue_limit=12, timeout=20.0, max_attempts=3, slow_at=6, fast_at=2)
PARAMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "max_tokens": 2},
    {"temperature": 0, "use_beam_search": True},
    {"seed": 3},
    {"n": 2, "max_tokens": 3},
    {"n": 3, "presence_penalty": 0.5},
    {"n": 2, "use_beam_search": True},
    {"temperature": 0, "stop": ["x"]},
)
ODD: tuple[dict[str, Any], ...] = (
    {"logprobs": ((None,),)},
    {"text": None},
    {"token_ids": None},
    {"prompt_token_ids": 5},
)


class Fuzz:
    """One scheduler, and what it has been told and has said."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.scheduler = RequestScheduler(LIMITS, Random(seed))
        self.now = 0.0
        self.next: float | None = None
        self.submitted = 0
        self.open: set[str] = set()
        self.incarnations = dict.fromkeys(CHILDREN, 0)
        self.orders: list[tuple[str, int, GenerateCommand]] = []
        self.steps = (
            (self.up, 6),
            (self.down, 5),
            (self.gate, 4),
            (self.stale, 2),
            (self.weights, 2),
            (self.withdraw, 2),
            (self.hold, 2),
            (self.resync, 4),
            (self.close, 1),
            (self.submit, 14),
            (self.taken, 8),
            (self.abandon, 3),
            (self.items, 30),
            (self.send_failed, 5),
            (self.tick, 12),
        )

    def run(self, steps: int) -> None:
        """Take random steps, then end everything and see that nothing is left."""
        kinds, weights = zip(*self.steps, strict=True)
        for step in self.random.choices(kinds, weights, k=steps):
            self.note(step())
            self.check()
        self.now += 1000
        self.note(self.scheduler.tick(self.now))
        self.check()
        assert not self.open, f"neither finished nor failed: {self.open}"
        assert not list(self.scheduler.samples)
        assert not any(engine.in_flight for engine in self.scheduler.routing.engines.values())

    def note(self, effects: list[Effect]) -> None:
        """Every effect is about an open request, and each request ends once."""
        aborted: set[tuple[str, int, tuple[str, int]]] = set()
        for effect in effects:
            match effect:
                case Deliver(request, _):
                    assert request in self.open, f"{request} has ended"
                case Finish(request, _) | Fail(request, _, _) | Abandoned(request, _):
                    self.open.remove(request)
                case Abort(child, incarnation, attempts):
                    aborted.update((child, incarnation, attempt) for attempt in attempts)
                case SendCommands(child, incarnation, orders):
                    assert self.scheduler.routing.live(child, incarnation) is not None
                    for order in orders:
                        assert order.request.rpartition(".")[0] in self.open, "sent after its end"
                        assert (child, incarnation, (order.request, order.attempt)) not in aborted
                        self.orders.append((child, incarnation, order))
                case NextDeadline(at):
                    self.next = at
                case _:
                    pass
        del self.orders[:-60]

    def check(self) -> None:
        """The queues and the engines agree with the samples about where each of them is."""
        scheduler = self.scheduler
        for engine in scheduler.routing.engines.values():
            for key, state in engine.in_flight.items():
                assert state.engine is engine
                assert state.request.id in self.open, f"{key} is in flight after its end"
            assert engine.reserved is None or engine.reserved.request.id in self.open
        for place, line in scheduler.routing.lines.items():
            for state in line.values():
                assert (state.place, state.request.open) == (place, True)
        assert {state.request.id for state in scheduler.samples} == self.open

    # Steps

    def child(self) -> str:
        return self.random.choice(CHILDREN)

    def incarnation(self, child: str) -> int:
        """Mostly the one that is up."""
        return max(1, self.incarnations[child] - (self.random.random() < 0.1))

    def request(self) -> str:
        return f"r{max(0, self.submitted - self.random.randrange(20))}"

    def up(self) -> list[Effect]:
        child = self.child()
        if child not in self.scheduler.routing.engines or self.random.random() < 0.3:
            self.incarnations[child] += 1
        info = EngineInfo("fuzz", "1", 48, self.random.randint(1, 3), (0,), (), 0.1)
        spare = self.random.random() < 0.2
        return self.scheduler.engine_up(child, max(1, self.incarnations[child]), info, self.now, spare=spare)

    def down(self) -> list[Effect]:
        child = self.child()
        incarnation = self.incarnation(child)
        fault = self.random.choice(
            (
                None,
                fault_of(child, incarnation),
                fault_of(child, incarnation),
                fault_of(child, incarnation, FaultClass.INTENDED),
            )
        )
        return self.scheduler.engine_down(child, incarnation, fault, self.now)

    def gate(self) -> list[Effect]:
        return self.scheduler.gate(self.child(), is_open=self.random.random() < 0.8, now=self.now)

    def stale(self) -> list[Effect]:
        return self.scheduler.stale(self.child(), self.now)

    def weights(self) -> list[Effect]:
        child = self.child()
        self.scheduler.weights(child, self.incarnation(child), self.random.randrange(3))
        return []

    def withdraw(self) -> list[Effect]:
        return self.scheduler.withdraw(self.child(), "paused", self.now)

    def hold(self) -> list[Effect]:
        return self.scheduler.hold(self.child(), held=self.random.random() < 0.5, now=self.now)

    def resync(self) -> list[Effect]:
        child = self.child()
        return self.scheduler.resync(child, self.incarnation(child), "the stream broke", self.now)

    def close(self) -> list[Effect]:
        child = self.child()
        return self.scheduler.close(fault_of(child, 1), self.now, immediately=self.random.random() < 0.3)

    def submit(self) -> list[Effect]:
        self.submitted += 1
        request = f"r{self.submitted}"
        choice = self.random.choice
        try:
            effects = self.scheduler.submit(
                request,
                "once",
                choice(PARAMS),
                self.now,
                timeout=choice((None, 0.5, 1, 4)),  # whole halves: deadlines and patience coincide
                on_divergence=choice((None, "fail")),
                on_weights_changed=choice(("splice", "restart", "fail")),
            )
        except (NoEngineError, QueueFullError):
            return []
        self.open.add(request)
        return effects

    def taken(self) -> list[Effect]:
        return self.scheduler.taken(self.request(), 0, self.random.randint(1, 4), self.now)

    def abandon(self) -> list[Effect]:
        return self.scheduler.abandon(self.request(), self.now)

    def items(self) -> list[Effect]:
        child = self.child()
        incarnation = self.incarnation(child)
        items: list[HostItem] = []
        if self.orders:
            for _ in range(self.random.randint(1, 4)):
                child, incarnation, order = self.random.choice(self.orders[-8:])
                items.append(self.item(order))
        return self.scheduler.items(child, incarnation, items, self.now)

    def item(self, order: GenerateCommand) -> HostItem:
        random, request, attempt = self.random, order.request, order.attempt
        kind = random.random()
        if kind < 0.04:
            return Refused(request, attempt, (Cause("ValueError", "no"),) if random.random() < 0.5 else ())
        if kind < 0.1:
            return Lost(request, attempt, "abort")
        tokens = tuple(random.choices((0, 1, 2), (1, 30, 3), k=random.randrange(4)))
        finish = random.choice(("stop", "length", "repetition")) if kind < 0.2 else None
        chunk = Chunk(request, attempt, tokens, "a" * len(tokens), None, finish, None, (10, 11))
        return chunk._replace(**random.choice(ODD)) if kind > 0.99 else chunk

    def send_failed(self) -> list[Effect]:
        if not self.orders:
            return []
        child, incarnation, order = self.random.choice(self.orders[-8:])
        attempts = [(order.request, order.attempt)] * 2
        return self.scheduler.send_failed(child, incarnation, attempts, "no answer", self.now)

    def tick(self) -> list[Effect]:
        self.now += self.random.choice((0.0, 0.05, 0.25, 0.5, 2.0))
        return self.scheduler.tick(self.now)


if __name__ == "__main__":
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    Fuzz(seed).run(count)
    sys.stdout.write(f"{count} steps with seed {seed}: nothing found\n")
