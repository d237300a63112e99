"""Nothing is lost, doubled or reordered, whatever engines, networks and readers do."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rayvisor._core.protocol.wire import Chunk, GenerateCommand, HostItem, Lost
from rayvisor._core.requests.effects import (
    Abandoned,
    Abort,
    Deliver,
    Effect,
    Fail,
    Finish,
    Flow,
    MadeProgress,
    NextDeadline,
    SendCommands,
)
from rayvisor._core.requests.errors import PoisonRequestError
from rayvisor._core.requests.limits import RequestLimits
from rayvisor._core.requests.results import Completion, GenerationChunk
from rayvisor._core.requests.scheduler import RequestScheduler
from rayvisor.faults import FaultClass
from tests.core.requests.oracle import INFO, Run, answer, fault_of

CHILDREN = ("pool/1", "pool/2", "pool/3")
LIMITS = RequestLimits(queue_limit=1000, timeout=1e6, max_attempts=10_000, slow_at=6, fast_at=2)


@dataclass
class Engine:
    child: str
    incarnation: int
    spare: bool
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    on_the_way: list[GenerateCommand] = field(default_factory=list)
    items: list[HostItem] = field(default_factory=list)
    gone: set[tuple[str, int]] = field(default_factory=set)
    stopped_reading: set[tuple[str, int]] = field(default_factory=set)

    @property
    def orders(self) -> set[tuple[str, int]]:
        """Everything the front believes to be in flight here."""
        return set(self.runs) | {(order.request, order.attempt) for order in self.on_the_way} | self.gone


@dataclass
class Reader:
    prompt: str
    n: int
    params: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish: list[str | None] = field(default_factory=list)
    untaken: list[int] = field(default_factory=list)
    strikes: int = 0
    state: str = "open"


class Requests(RuleBasedStateMachine):
    """Drives a front with engines that are oracles, and compares what readers get."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = RequestScheduler(LIMITS, Random(1))
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.dead: list[Engine] = []
        self.incarnations = dict.fromkeys(CHILDREN, 0)
        self.open_gates = dict.fromkeys(CHILDREN, True)
        self.readers: dict[str, Reader] = {}
        self.poisonable: set[str] = set()

    # What the front asks for

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Deliver(request, chunk):
                    self.read(request, chunk)
                case Finish(request, completion):
                    self.check_completion(self.readers[request], completion)
                case Fail(request, error, _):
                    assert isinstance(error, PoisonRequestError), error
                    assert request in self.poisonable
                    self.readers[request].state = "failed"
                case Abandoned(request):
                    self.readers[request].state = "left"
                case SendCommands(child, incarnation, orders):
                    self.send(self.engine(child, incarnation), orders)
                case Abort(child, incarnation, attempts):
                    self.drop(self.engine(child, incarnation), set(attempts))
                case Flow(child, incarnation, request, attempt, is_open):
                    stopped = self.engine(child, incarnation).stopped_reading
                    (stopped.discard if is_open else stopped.add)((request, attempt))
                case MadeProgress() | NextDeadline():
                    pass

    def engine(self, child: str, incarnation: int) -> Engine:
        """Only living engines are addressed."""
        engine = self.engines[child]
        assert engine.incarnation == incarnation
        return engine

    def drop(self, engine: Engine, attempts: set[tuple[str, int]]) -> None:
        for attempt in attempts:
            engine.runs.pop(attempt, None)
        engine.gone -= attempts
        engine.stopped_reading -= attempts
        engine.on_the_way = [
            order for order in engine.on_the_way if (order.request, order.attempt) not in attempts
        ]

    def check_completion(self, reader: Reader, completion: Completion) -> None:
        reader.state = "finished"
        for sample, params in zip(completion.samples, reader.params, strict=True):
            expected = answer(reader.prompt, params)
            assert (sample.token_ids, sample.text) == (expected.tokens, expected.text)
            assert sample.finish_reason == expected.finish_reason
            assert sample.divergences == ()
            if params.get("logprobs") is not None:
                assert sample.cumulative_logprob is not None
                assert abs(sample.cumulative_logprob + sum(expected.tokens) / 7) < 1e-6
        assert completion.usage.completion_tokens == sum(len(each) for each in reader.tokens)
        assert completion.usage.prompt_tokens == len(reader.prompt.encode())

    def read(self, request: str, chunk: GenerationChunk) -> None:
        reader = self.readers[request]
        assert reader.state == "open"
        index = chunk.index
        assert reader.finish[index] is None, "a chunk after the last one"
        reader.tokens[index] += chunk.token_ids
        reader.text[index] += chunk.text
        reader.untaken[index] += len(chunk.token_ids)
        reader.finish[index] = chunk.finish_reason
        params = reader.params[index]
        expected = answer(reader.prompt, params)
        assert tuple(reader.tokens[index]) == expected.tokens[: len(reader.tokens[index])]
        assert expected.text.startswith(reader.text[index])

    def send(self, engine: Engine, orders: tuple[GenerateCommand, ...]) -> None:
        assert not engine.spare
        assert self.open_gates[engine.child]
        for order in orders:
            request, _, index = order.request.rpartition(".")
            reader = self.readers[request]
            assert order.params["n"] == 1
            if order.delivered:
                assert reader.params[int(index)].get("temperature") == 0
                assert list(order.delivered) == reader.tokens[int(index)]
                assert order.characters == len(reader.text[int(index)])
            alone = reader.strikes >= 2
            others = {key.rpartition(".")[0] for key, _ in engine.orders}
            if alone:
                assert not others, "a suspect is not alone"
                self.check_spared(engine)
            assert not any(
                self.readers[other].strikes >= 2 and self.suspect_run(engine, other) for other in others
            )
            engine.on_the_way.append(order)
        assert len(engine.orders) <= 4

    def suspect_run(self, engine: Engine, request: str) -> bool:
        """Whether this request came here as a suspect, and not before its second strike."""
        place = self.scheduler.routing.engines[engine.child]
        return place.reserved is not None and place.reserved.request.id == request

    def check_spared(self, engine: Engine) -> None:
        lines = self.scheduler.routing.lines
        others = [
            e for e in self.engines.values() if e is not engine and not e.spare and self.open_gates[e.child]
        ]
        wanted = any(
            self.readers[part.request.id].strikes < 2 for line in lines.values() for part in line.values()
        ) or any(
            self.readers[key.rpartition(".")[0]].strikes < 2
            for e in self.engines.values()
            for key, _ in e.orders
        )
        assert others or not wanted, "a suspect took the last engine that others want"

    # What happens

    @initialize()
    def one_engine(self) -> None:
        self.bring_up(CHILDREN[0], spare=False)

    def bring_up(self, child: str, *, spare: bool) -> None:
        self.incarnations[child] += 1
        engine = Engine(child, self.incarnations[child], spare)
        self.engines[child] = engine
        self.carry_out(self.scheduler.engine_up(child, engine.incarnation, INFO, self.now, spare=spare))

    @rule(child=st.sampled_from(CHILDREN), spare=st.integers(0, 4))
    def an_engine_comes_up(self, child: str, spare: int) -> None:
        if child not in self.engines:
            self.bring_up(child, spare=spare == 0)

    @rule(child=st.sampled_from(CHILDREN))
    def a_spare_takes_over(self, child: str) -> None:
        engine = self.engines.get(child)
        if engine is not None and engine.spare:
            engine.spare = False
            self.carry_out(self.scheduler.engine_up(child, engine.incarnation, INFO, self.now, spare=False))

    @rule(child=st.sampled_from(CHILDREN), intended=st.integers(0, 3))
    def an_engine_ends(self, child: str, intended: int) -> None:
        if child in self.engines:
            self.end(self.engines.pop(child), intended=intended == 0)

    def end(self, engine: Engine, *, intended: bool) -> None:
        child = engine.child
        self.dead.append(engine)
        fault = fault_of(child, engine.incarnation, FaultClass.INTENDED if intended else FaultClass.FATAL)
        if not intended:
            struck = {key.rpartition(".")[0] for key, _ in engine.orders}
            for request in struck:
                reader = self.readers[request]
                reader.strikes += 1
                if reader.strikes > 2 and len(struck) == 1:
                    self.poisonable.add(request)
        self.carry_out(self.scheduler.engine_down(child, engine.incarnation, fault, self.now))

    @rule(data=st.data())
    def a_busy_engine_dies(self, data: st.DataObject) -> None:
        busy = [engine.child for engine in self.engines.values() if engine.orders]
        if busy:
            self.end(self.engines.pop(data.draw(st.sampled_from(busy))), intended=False)

    @rule(child=st.sampled_from(CHILDREN), is_open=st.booleans())
    def a_gate_moves(self, child: str, *, is_open: bool) -> None:
        self.open_gates[child] = is_open
        self.carry_out(self.scheduler.gate(child, is_open=is_open, now=self.now))

    @rule(
        prompt=st.sampled_from(("once", "upon", "a", "time")),
        greedy=st.booleans(),
        n=st.integers(1, 3),
        max_tokens=st.sampled_from((1, 2, 7, 30, None)),
        more=st.sampled_from(({}, {"ignore_eos": True}, {"presence_penalty": 0.5}, {"logprobs": 1})),
    )
    def a_request_comes(
        self, prompt: str, *, greedy: bool, n: int, max_tokens: int | None, more: dict[str, Any]
    ) -> None:
        request = f"r{len(self.readers)}"
        params = {"max_tokens": max_tokens, **more}
        if greedy:
            params["temperature"], n = 0, 1
        reader = Reader(prompt, n, [], [[] for _ in range(n)], [""] * n, [None] * n, [0] * n)
        self.readers[request] = reader
        effects = self.scheduler.submit(request, prompt, {**params, "n": n}, self.now)
        reader.params = [part.sample.params for part in self.scheduler.samples if part.request.id == request]
        self.carry_out(effects)

    @rule(data=st.data(), arrives=st.integers(0, 5))
    def orders_arrive_or_not(self, data: st.DataObject, arrives: int) -> None:
        engines = [engine for engine in self.engines.values() if engine.on_the_way]
        if not engines:
            return
        engine = data.draw(st.sampled_from(engines))
        orders, engine.on_the_way = engine.on_the_way, []
        if arrives:
            engine.runs.update({(order.request, order.attempt): Run(order) for order in orders})
            return
        # A send may be reported as failed although the orders arrived.
        if data.draw(st.booleans()):
            engine.runs.update({(order.request, order.attempt): Run(order) for order in orders})
        else:
            engine.gone |= {(order.request, order.attempt) for order in orders}
        attempts = [(order.request, order.attempt) for order in orders]
        self.carry_out(
            self.scheduler.send_failed(engine.child, engine.incarnation, attempts, "no answer", self.now)
        )

    @rule(data=st.data(), size=st.integers(1, 5), hold_finish=st.booleans())
    def an_engine_generates(self, data: st.DataObject, size: int, *, hold_finish: bool) -> None:
        runs = [
            (engine, attempt)
            for engine in self.engines.values()
            for attempt in engine.runs
            if attempt not in engine.stopped_reading
        ]
        if runs:
            engine, attempt = data.draw(st.sampled_from(runs))
            self.generate(engine, attempt, size, hold_finish=hold_finish)

    def generate(self, engine: Engine, attempt: tuple[str, int], size: int, *, hold_finish: bool) -> None:
        run = engine.runs[attempt]
        chunk = run.chunk(size, hold_finish=hold_finish and run.left > 0)
        engine.items.append(chunk)
        if chunk.finish_reason is not None:
            del engine.runs[attempt]
            engine.gone.add(attempt)  # the front does not know yet

    @rule(data=st.data())
    def an_engine_gives_a_request_up(self, data: st.DataObject) -> None:
        runs = [(engine, attempt) for engine in self.engines.values() for attempt in engine.runs]
        if runs:
            engine, attempt = data.draw(st.sampled_from(runs))
            del engine.runs[attempt]
            engine.gone.add(attempt)
            engine.items.append(Lost(*attempt, "abort"))

    @rule(data=st.data(), many=st.integers(1, 8))
    def items_arrive(self, data: st.DataObject, many: int) -> None:
        engines = [engine for engine in self.engines.values() if engine.items]
        if engines:
            self.hand_over(data.draw(st.sampled_from(engines)), many)

    def hand_over(self, engine: Engine, many: int) -> None:
        items, engine.items = engine.items[:many], engine.items[many:]
        for item in items:
            if isinstance(item, Lost) or (isinstance(item, Chunk) and item.finish_reason is not None):
                engine.gone.discard((item.request, item.attempt))
        self.carry_out(self.scheduler.items(engine.child, engine.incarnation, items, self.now))

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def late_items_arrive(self, data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from(self.dead))
        items, engine.items = engine.items, []
        self.carry_out(self.scheduler.items(engine.child, engine.incarnation, items, self.now))

    @rule(child=st.sampled_from(CHILDREN))
    def the_stream_of_items_breaks(self, child: str) -> None:
        engine = self.engines.get(child)
        if engine is not None and engine.items:
            engine.items.clear()
            self.carry_out(self.scheduler.resync(child, engine.incarnation, "the stream broke", self.now))
            engine.gone.clear()

    @rule(data=st.data(), tokens=st.integers(1, 10))
    def a_reader_reads(self, data: st.DataObject, tokens: int) -> None:
        readers = [
            (request, index)
            for request, reader in self.readers.items()
            for index, untaken in enumerate(reader.untaken)
            if untaken and reader.state == "open"
        ]
        if readers:
            self.take(*data.draw(st.sampled_from(readers)), tokens)

    def take(self, request: str, index: int, tokens: int) -> None:
        reader = self.readers[request]
        taken = min(tokens, reader.untaken[index])
        reader.untaken[index] -= taken
        self.carry_out(self.scheduler.taken(request, index, taken, self.now))

    @rule(data=st.data())
    def a_reader_leaves(self, data: st.DataObject) -> None:
        readers = [request for request, reader in self.readers.items() if reader.state == "open"]
        if len(readers) > 3:
            request = data.draw(st.sampled_from(readers))
            self.carry_out(self.scheduler.abandon(request, self.now))
            assert self.readers[request].state == "left"

    @rule(seconds=st.floats(0.01, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.scheduler.tick(self.now))

    @invariant()
    def a_slow_reader_holds_little(self) -> None:
        for reader in self.readers.values():
            # At most what was waiting plus the chunks that were on the way when reading was stopped.
            assert all(untaken <= 60 for untaken in reader.untaken)

    @invariant()
    def nothing_waits_while_an_engine_is_free(self) -> None:
        lines = self.scheduler.routing.lines
        waiting = [part for line in lines.values() for part in line.values() if not part.request.suspect]
        free = [engine for engine in self.scheduler.routing.engines.values() if engine.takes(self.now)]
        assert not (waiting and free)

    def everything_moves(self) -> None:
        self.now += 1
        self.carry_out(self.scheduler.tick(self.now))
        for engine in self.engines.values():
            orders, engine.on_the_way = engine.on_the_way, []
            engine.runs.update({(order.request, order.attempt): Run(order) for order in orders})
            for attempt in [each for each in engine.runs if each not in engine.stopped_reading]:
                self.generate(engine, attempt, 3, hold_finish=False)
            self.hand_over(engine, len(engine.items))
        for request, reader in self.readers.items():
            for index in range(reader.n):
                if reader.state == "open":
                    self.take(request, index, 1000)

    def teardown(self) -> None:
        """From here on nothing fails: everything that is open must come to its right end."""
        self.poisonable.clear()
        for child in CHILDREN:
            self.open_gates[child] = True
            self.carry_out(self.scheduler.gate(child, is_open=True, now=self.now))
            if child not in self.engines:
                self.bring_up(child, spare=False)
            self.a_spare_takes_over(child)
        for _ in range(4000):
            if all(reader.state != "open" for reader in self.readers.values()):
                break
            self.everything_moves()
        assert {reader.state for reader in self.readers.values()} <= {"finished", "failed", "left"}
        assert list(self.scheduler.samples) == []
        assert all(not engine.in_flight for engine in self.scheduler.routing.engines.values())


TestRequests = Requests.TestCase
TestRequests.settings = settings(
    max_examples=120,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
