"""The front's rules, one by one, in virtual time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any, TypeVar

import pytest

from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, Lost, Refused
from rayvisor._core.requests.effects import (
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
from rayvisor._core.requests.errors import (
    AttemptsExhaustedError,
    DeadlineExceededError,
    InvalidRequestError,
    NoEngineError,
    PoisonRequestError,
    QueueFullError,
    ReplayDivergedError,
    RequestError,
    UnmovableRequestError,
)
from rayvisor._core.requests.limits import RequestLimits
from rayvisor._core.requests.scheduler import RequestScheduler
from rayvisor.errors import SpecError
from rayvisor.faults import Cause, FaultClass
from tests.core.requests.oracle import fault_of

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 50}
SAMPLED: dict[str, Any] = {"max_tokens": 50, "seed": 1}
T = TypeVar("T", bound=Effect)
A, B, C = "llm/1", "llm/2", "llm/3"


class Bench:
    """A front, and what it asked for last."""

    def __init__(self, **limits: Any) -> None:
        self.scheduler = RequestScheduler(RequestLimits(**limits), Random(1))
        self.now = 0.0
        self.last: list[Effect] = []
        self.all: list[Effect] = []
        self.at: dict[str, tuple[str, int, GenerateCommand]] = {}
        self.incarnations: dict[str, int] = {}

    def note(self, effects: list[Effect]) -> Bench:
        self.last = effects
        self.all += effects
        for effect in effects:
            if isinstance(effect, SendCommands):
                for order in effect.orders:
                    self.at[order.request] = (effect.child, effect.incarnation, order)
        return self

    def of(self, kind: type[T], *, ever: bool = False) -> list[T]:
        return [effect for effect in (self.all if ever else self.last) if isinstance(effect, kind)]

    def up(self, *children: str, sequences: int = 4, spare: bool = False) -> Bench:
        for child in children:
            self.incarnations[child] = self.incarnations.get(child, 0) + 1
            info = EngineInfo("vllm", "0.32", 1000, sequences, (2,), (), 1.0)
            self.note(self.scheduler.engine_up(child, self.incarnations[child], info, self.now, spare=spare))
        return self

    def down(self, child: str, *, intended: bool = False) -> Bench:
        incarnation = self.incarnations[child]
        kind = FaultClass.INTENDED if intended else FaultClass.FATAL
        return self.note(
            self.scheduler.engine_down(child, incarnation, fault_of(child, incarnation, kind), self.now)
        )

    def submit(self, request: str, params: dict[str, Any] | None = None, **more: Any) -> Bench:
        prompt = more.pop("prompt", "once")
        return self.note(
            self.scheduler.submit(request, prompt, GREEDY if params is None else params, self.now, **more)
        )

    def chunk(self, request: str, *tokens: int, **more: Any) -> Bench:
        """A chunk of the attempt that was ordered last."""
        key = request if "." in request else f"{request}.0"
        child, incarnation, order = self.at[key]
        text = "".join(map(chr, tokens))
        item = Chunk(key, order.attempt, tokens, text, prompt_token_ids=(10, 11), **more)
        return self.note(self.scheduler.items(child, incarnation, [item], self.now))

    def lost(self, request: str, reason: str = "abort") -> Bench:
        child, incarnation, order = self.at[f"{request}.0"]
        return self.note(
            self.scheduler.items(child, incarnation, [Lost(order.request, order.attempt, reason)], self.now)
        )

    def wait(self, seconds: float) -> Bench:
        self.now += seconds
        return self.note(self.scheduler.tick(self.now))

    def where(self, request: str) -> str:
        return self.at[f"{request}.0"][0]

    def sent(self) -> list[str]:
        return [order.request for effect in self.of(SendCommands) for order in effect.orders]

    def error(self) -> RequestError:
        (fail,) = self.of(Fail)
        return fail.error


# Routing


def test_the_engine_with_the_least_in_flight_gets_the_next_one() -> None:
    bench = Bench().up(A, B)
    for number in range(4):
        bench.submit(f"r{number}")
    assert [bench.where(f"r{number}") for number in range(4)] == [A, B, A, B]
    bench.chunk("r1", 65, finish_reason="stop")
    assert bench.submit("r4").where("r4") == B


def test_an_engine_is_given_twice_what_it_runs_at_a_time_and_the_rest_waits_in_order() -> None:
    bench = Bench().up(A, sequences=2)
    for number in range(7):
        bench.submit(f"r{number}")
    assert bench.scheduler.room == 1000 - 3
    assert bench.chunk("r2", 65, finish_reason="stop").sent() == ["r4.0"]
    assert bench.chunk("r0", 65, finish_reason="stop").sent() == ["r5.0"]


def test_only_an_engine_that_serves_is_given_work() -> None:
    bench = Bench().up(A, spare=True)
    bench.note(bench.scheduler.gate(B, is_open=False, now=0.0)).up(B)
    assert bench.submit("r0").sent() == []
    assert bench.note(bench.scheduler.gate(B, is_open=True, now=0.0)).sent() == ["r0.0"]
    assert bench.down(B).sent() == []
    info = EngineInfo("vllm", "0.32", 1000, 4, (2,), (), 1.0)
    assert bench.note(bench.scheduler.engine_up(A, 1, info, 0.0, spare=False)).sent() == ["r0.0"]


def test_a_closed_gate_leaves_what_is_in_flight_there() -> None:
    bench = Bench().up(A).submit("r0")
    bench.note(bench.scheduler.gate(A, is_open=False, now=0.0))
    assert bench.last == []
    assert len(bench.chunk("r0", 65, finish_reason="stop").of(Finish)) == 1


def test_a_gate_stays_closed_for_the_next_incarnation() -> None:
    bench = Bench().up(A).submit("r0")
    bench.note(bench.scheduler.gate(A, is_open=False, now=0.0)).down(A).up(A)
    assert bench.sent() == []


def test_requests_that_lost_their_engine_go_before_new_ones() -> None:
    bench = Bench().up(A, sequences=1).submit("r0").submit("r1").submit("r2").submit("r3")
    assert bench.down(A).sent() == []
    assert bench.up(A, sequences=1).sent() == ["r0.0", "r1.0"]


def test_the_queue_is_bounded_and_says_so() -> None:
    bench = Bench(queue_limit=2).submit("r0").submit("r1")
    with pytest.raises(QueueFullError) as caught:
        bench.submit("r2")
    assert (caught.value.waiting, caught.value.limit) == (2, 2)
    bench.up(A).submit("r2")
    assert bench.sent() == ["r2.0"]


def test_more_samples_than_the_queue_can_ever_hold_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="queue_limit"):
        Bench(queue_limit=2).submit("r0", {"n": 3})


def test_samples_are_requests_of_their_own_and_end_together() -> None:
    bench = Bench().up(A, B).submit("r0", {"n": 2, "seed": 5})
    assert [bench.at[key][2].params["seed"] for key in ("r0.0", "r0.1")] == [5, 6]
    assert bench.chunk("r0.1", 65, finish_reason="stop").of(Finish) == []
    (finish,) = bench.chunk("r0.0", 66, 67, finish_reason="length").of(Finish)
    assert [sample.text for sample in finish.completion.samples] == ["BC", "A"]
    assert (finish.completion.usage.prompt_tokens, finish.completion.usage.completion_tokens) == (2, 3)


def instructions_of(call: Callable[[], object]) -> int:
    """How many bytecode instructions a call takes: its cost, without a clock."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # what it finalises is somebody else's, and would be counted
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def test_routing_costs_the_same_however_many_wait() -> None:
    def cost(waiting: int) -> int:
        bench = Bench(queue_limit=waiting).up(A, sequences=1)
        for number in range(waiting):
            bench.submit(f"r{number}")
        return instructions_of(lambda: bench.chunk("r0", 65, finish_reason="stop"))

    assert cost(3000) == cost(30)


# Death and what follows


def test_a_stream_goes_on_behind_its_tokens_on_another_engine() -> None:
    bench = Bench().up(A, B).submit("r0").chunk("r0", 65, 66)
    bench.down(A)
    child, _, order = bench.at["r0.0"]
    assert (child, order.attempt, order.prompt, order.delivered, order.characters) == (
        B,
        2,
        (10, 11),
        (65, 66),
        2,
    )
    bench.scheduler.weights(B, 1, 7)
    (deliver,) = bench.chunk("r0", 67).of(Deliver)
    assert (deliver.chunk.text, deliver.chunk.child, deliver.chunk.weight_version) == ("C", B, 7)


def test_what_an_old_attempt_still_sends_is_dropped() -> None:
    bench = Bench().up(A, B).submit("r0").chunk("r0", 65)
    bench.down(A)
    late = [Chunk("r0.0", 1, (66,), "B")]
    assert bench.note(bench.scheduler.items(A, 1, late, 0.0)).last == []
    assert bench.note(bench.scheduler.items(B, 1, late, 0.0)).of(Deliver) == []
    assert bench.scheduler.counts.late_items == 2


def test_an_engine_that_sends_what_nobody_wants_is_told_again_but_not_all_the_time() -> None:
    bench = Bench().up(A).submit("r0")
    bench.note(bench.scheduler.abandon("r0", 0.0))
    assert bench.of(Abort) == [Abort(A, 1, (("r0.0", 1),))]
    late = [Chunk("r0.0", 1, (66,), "B")] * 3
    assert bench.note(bench.scheduler.items(A, 1, late, 0.1)).of(Abort) == [Abort(A, 1, (("r0.0", 1),))]
    assert bench.note(bench.scheduler.items(A, 1, late, 0.5)).of(Abort) == []
    assert bench.note(bench.scheduler.items(A, 1, late, 1.5)).of(Abort) == [Abort(A, 1, (("r0.0", 1),))]


def test_an_end_nobody_asked_for_is_a_fault_and_the_request_goes_on() -> None:
    bench = Bench().up(A, B).submit("r0").chunk("r0", 65).lost("r0")
    assert bench.where("r0") == B
    assert bench.of(Fail) == []


def test_an_engine_that_gave_a_request_up_rests_before_it_is_given_another() -> None:
    bench = Bench().up(A).submit("r0").lost("r0")
    assert bench.sent() == []
    (next_look,) = bench.of(NextDeadline)
    assert 0 < next_look.at < 1
    assert bench.wait(next_look.at).sent() == ["r0.0"]


def test_orders_that_could_not_be_sent_do_not_count_as_attempts() -> None:
    bench = Bench(max_attempts=1).up(A, B).submit("r0")
    for expected in (B, A, B):
        child, incarnation, order = bench.at["r0.0"]
        bench.note(
            bench.scheduler.send_failed(child, incarnation, [("r0.0", order.attempt)], "no answer", bench.now)
        )
        assert bench.of(Abort) == [Abort(child, incarnation, (("r0.0", order.attempt),))]
        bench.wait(10.0)
        assert bench.where("r0") == expected
    assert len(bench.chunk("r0", 65, finish_reason="stop").of(Finish)) == 1


def test_an_order_that_arrived_all_the_same_stays_where_it_is() -> None:
    bench = Bench().up(A, B).submit("r0").chunk("r0", 65)
    bench.note(bench.scheduler.send_failed(A, 1, [("r0.0", 1)], "no answer", bench.now))
    assert bench.last == []
    assert len(bench.chunk("r0", 66).of(Deliver)) == 1


def test_missing_items_mean_that_everything_there_is_sent_anew() -> None:
    bench = Bench().up(A).submit("r0").submit("r1").chunk("r0", 65)
    bench.note(bench.scheduler.resync(A, 1, "the stream broke", bench.now))
    (abort,) = bench.of(Abort)
    assert abort.attempts == (("r0.0", 1), ("r1.0", 1))
    assert bench.sent() == ["r0.0", "r1.0"]
    assert bench.at["r0.0"][2].delivered == (65,)


def test_broken_streams_of_a_living_engine_are_no_attempts() -> None:
    bench = Bench(max_attempts=2).up(A).submit("r0").submit("r1", {**SAMPLED, "n": 2})
    for _ in range(20):
        bench.chunk("r0", 65)
        bench.note(bench.scheduler.resync(A, 1, "the stream broke", bench.now))
    assert bench.of(Fail, ever=True) == []
    assert bench.down(A).up(A).of(Fail) == [], "the attempts are left for engines that end"
    (finish,) = bench.chunk("r0", 65, finish_reason="stop").of(Finish)
    assert finish.completion.samples[0].attempts == 2


def test_missing_items_of_a_request_that_fails_with_its_first_sample_are_no_error() -> None:
    params = {"use_beam_search": True, "n": 2}
    bench = Bench().up(A).submit("r0", params).submit("r1").chunk("r0.0", 65).chunk("r0.1", 65)
    bench.note(bench.scheduler.resync(A, 1, "the stream broke", bench.now))
    assert isinstance(bench.error(), UnmovableRequestError)
    assert bench.sent() == ["r1.0"]


def test_a_new_incarnation_that_is_announced_before_the_old_ones_end_takes_over() -> None:
    bench = Bench().up(A).submit("r0").chunk("r0", 65).up(A)
    assert bench.at["r0.0"][1] == 2
    assert bench.note(bench.scheduler.engine_down(A, 1, fault_of(A, 1), 0.0)).last == []


def test_a_finish_that_was_lost_is_made_good_without_an_engine() -> None:
    bench = Bench().up(A).submit("r0", {"temperature": 0, "max_tokens": 2}).chunk("r0", 65, 66)
    bench.down(A)
    (deliver,) = bench.of(Deliver)
    assert (deliver.chunk.token_ids, deliver.chunk.finish_reason) == ((), "length")
    assert bench.of(Finish)[0].completion.text == "AB"


def test_an_engine_is_useful_from_its_first_delivered_token_and_that_is_said_once() -> None:
    bench = Bench().up(A).submit("r0", SAMPLED)
    assert bench.chunk("r0").of(MadeProgress) == []
    assert bench.chunk("r0", 65).of(MadeProgress) == [MadeProgress(A, 1)]
    assert bench.chunk("r0", 66).of(MadeProgress) == []
    bench.down(A).up(A)
    assert bench.chunk("r0", 65, 66).of(MadeProgress) == [], (
        "tokens that were delivered before are no use to anybody"
    )
    assert bench.chunk("r0", 67).of(MadeProgress) == [MadeProgress(A, 2)]


# What ends a request otherwise


def test_a_request_that_is_refused_fails_with_what_the_engine_said() -> None:
    bench = Bench().up(A).submit("r0")
    causes = (Cause("EngineError", "bad"), Cause("ValueError", "top_p must be in (0, 1]"))
    bench.note(bench.scheduler.items(A, 1, [Refused("r0.0", 1, causes)], 0.0))
    error = bench.error()
    assert isinstance(error, InvalidRequestError)
    assert str(error).startswith("ValueError: top_p must be in (0, 1]")
    assert bench.of(Abort) == [Abort(A, 1, (("r0.0", 1),))]


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    bench = Bench(timeout=10.0).up(A).submit("r0").chunk("r0", 65)
    assert bench.of(NextDeadline, ever=True)[0].at == 10.0
    assert bench.wait(9.9).of(Fail) == []
    error = bench.wait(0.1).error()
    assert isinstance(error, DeadlineExceededError)
    assert (error.timeout, error.delivered, error.where) == (10.0, 1, "in flight")
    assert bench.of(Abort) == [Abort(A, 1, (("r0.0", 1),))]


def test_a_deadline_ends_a_request_that_waits_and_names_the_fault_it_met() -> None:
    bench = Bench().up(A).submit("r0", timeout=5.0).chunk("r0", 65).down(A)
    error = bench.wait(5.0).error()
    assert isinstance(error, DeadlineExceededError)
    assert str(error).startswith("ProcessKilled: EngineCore was ended by SIGKILL")
    assert error.where == "waiting for another engine"


def test_attempts_are_bounded() -> None:
    bench = Bench(max_attempts=2).up(A).submit("r0").down(A).up(A).down(A)
    error = bench.error()
    assert isinstance(error, AttemptsExhaustedError)
    assert error.attempts == 2
    assert str(error).startswith("ProcessKilled")


def test_when_no_engine_will_come_back_everything_that_waits_fails_with_the_root_cause() -> None:
    bench = Bench().up(A, B, sequences=1).submit("r0").submit("r1").submit("r2").submit("r3").submit("r4")
    bench.down(A)
    bench.note(bench.scheduler.close(fault_of(A, 1), bench.now))
    assert [fail.request for fail in bench.of(Fail)] == ["r0", "r2", "r4"]
    assert str(bench.of(Fail)[0].error).startswith("ProcessKilled: EngineCore was ended by SIGKILL")
    with pytest.raises(NoEngineError, match="ProcessKilled"):
        bench.submit("r5")
    assert len(bench.chunk("r1", 65, finish_reason="stop").of(Finish)) == 1
    assert isinstance(bench.down(B).error(), NoEngineError)
    assert bench.up(A).submit("r6").sent() == ["r6.0"], "open again"


def test_beam_search_runs_but_does_not_move() -> None:
    bench = Bench().up(A, B).submit("r0", {"use_beam_search": True, "temperature": 0}).chunk("r0", 65)
    error = bench.down(A).error()
    assert isinstance(error, UnmovableRequestError)
    assert "use_beam_search=True" in str(error)
    assert error.delivered == 1


def test_what_has_not_delivered_anything_is_sent_anew_whatever_it_is() -> None:
    bench = Bench().up(A, B).submit("r0", {"use_beam_search": True, "temperature": 0}).down(A)
    assert bench.where("r0") == B


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", 0),
        ("timeout", float("inf")),
        ("max_attempts", 0),
        ("on_divergence", "ignore"),
        ("timeout", "1"),
    ],
)
def test_a_wrong_bound_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Bench().submit("r0", **{field: value})
    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue_limit", 0),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("max_attempts", True),
        ("on_divergence", "ignore"),
        ("on_weights_changed", "stop"),
        ("slow_at", 1.5),
        ("fast_at", 256),
        ("orders_per_sequence", "many"),
    ],
)
def test_a_configuration_that_cannot_work_is_a_mistake_in_a_spec(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        RequestLimits(**{field: value})
    assert (caught.value.field, caught.value.value is value) == (field, True)


# A replay that comes out different


def test_a_divergence_is_reported_and_the_stream_goes_on_behind_its_tokens() -> None:
    bench = Bench().up(A, B).submit("r0", SAMPLED).chunk("r0", 65, 66).down(A)
    assert bench.at["r0.0"][2].delivered == ()
    bench.chunk("r0", 65, 70, 71)
    assert bench.of(Deliver) == []
    assert bench.of(Abort) == [Abort(B, 1, (("r0.0", 2),))]
    order = bench.at["r0.0"][2]
    assert (order.attempt, order.delivered) == (3, (65, 66))
    (deliver,) = bench.chunk("r0", 67).of(Deliver)
    assert deliver.chunk.divergence is not None
    assert (deliver.chunk.divergence.position, deliver.chunk.divergence.got) == (1, 70)
    bench.down(B).up(B)
    assert list(bench.at["r0.0"][2].delivered) == [65, 66, 67], "once spliced it cannot be generated again"


def test_a_divergence_fails_the_request_if_that_was_asked_for() -> None:
    bench = Bench().up(A, B).submit("r0", SAMPLED, on_divergence="fail").chunk("r0", 65, 66).down(A)
    error = bench.chunk("r0", 65, 70).error()
    assert isinstance(error, ReplayDivergedError)
    assert (error.divergence.position, error.divergence.expected, error.divergence.got) == (1, 66, 70)


def test_a_divergence_fails_a_request_that_cannot_be_spliced() -> None:
    params = {**SAMPLED, "presence_penalty": 0.5}
    bench = Bench().up(A, B).submit("r0", params).chunk("r0", 65, 66).down(A)
    error = bench.chunk("r0", 65, 70).error()
    assert isinstance(error, ReplayDivergedError)
    assert "presence_penalty=0.5" in str(error)


# Slow readers


def test_a_slow_reader_stops_being_read_for_and_is_read_for_again() -> None:
    bench = Bench(slow_at=3, fast_at=1).up(A).submit("r0").chunk("r0", 65, 66)
    assert bench.of(Flow) == []
    assert bench.chunk("r0", 67).of(Flow) == [Flow(A, 1, "r0.0", 1, open=False)]
    assert bench.chunk("r0", 68).of(Flow) == []
    assert bench.note(bench.scheduler.taken("r0", 0, 2, 0.0)).of(Flow) == []
    assert bench.note(bench.scheduler.taken("r0", 0, 1, 0.0)).of(Flow) == [Flow(A, 1, "r0.0", 1, open=True)]


def test_a_slow_reader_that_loses_its_engine_is_not_sent_on_before_it_reads() -> None:
    bench = Bench(slow_at=3, fast_at=1).up(A, B).submit("r0").chunk("r0", 65, 66, 67).down(A)
    assert bench.sent() == []
    assert bench.note(bench.scheduler.taken("r0", 0, 2, 0.0)).sent() == ["r0.0"]


# Poison


def struck(bench: Bench, *requests: str) -> Bench:
    """Requests that have been in flight on an engine in two deaths."""
    for request in requests:
        bench.submit(request)
    for _ in range(2):
        bench.down(A).up(A)
    return bench


def test_after_one_strike_requests_go_on_together() -> None:
    bench = Bench().up(A).submit("r0").submit("r1").down(A).up(A)
    assert bench.sent() == ["r0.0", "r1.0"]


def test_after_two_strikes_a_request_runs_alone() -> None:
    bench = struck(Bench().up(A), "r0", "r1", "r2")
    assert bench.sent() == ["r0.0"]
    assert bench.chunk("r0", 65, finish_reason="stop").sent() == ["r1.0"]


def test_a_request_under_which_its_engine_dies_alone_is_poison_and_the_innocents_finish() -> None:
    bench = struck(Bench().up(A), "r0", "r1")
    bench.down(A)
    error = bench.error()
    assert isinstance(error, PoisonRequestError)
    assert (error.request, error.strikes) == ("r0", 3)
    assert error.fault is not None
    assert str(error).startswith("ProcessKilled: EngineCore was ended by SIGKILL")
    assert bench.of(MadeProgress) == [MadeProgress(A, 3)], "the engine is not to blame"
    assert bench.up(A).sent() == ["r1.0"]
    assert len(bench.chunk("r1", 65, finish_reason="stop").of(Finish)) == 1


def test_an_intended_end_is_no_strike() -> None:
    bench = struck(Bench().up(A), "r0")
    assert bench.down(A, intended=True).of(Fail) == []
    assert bench.up(A).sent() == ["r0.0"]


def test_quarantine_leaves_one_engine_to_the_others() -> None:
    bench = Bench().up(A).submit("r0").submit("r1").down(A).up(A).down(A)
    bench.submit("r2").up(A)
    assert bench.sent() == ["r2.0"], "the only engine goes to the one without strikes"
    assert bench.up(B).sent() == ["r0.0"]
    assert bench.where("r0") == B
    assert bench.submit("r3").where("r3") == A
    assert bench.chunk("r0", 65, finish_reason="stop").sent() == ["r1.0"], "one at a time"
    assert bench.where("r1") == B


def test_quarantine_waits_until_its_engine_has_done_with_others() -> None:
    bench = Bench().up(A).submit("r0").down(A).up(A, B, C).submit("r1").submit("r2")
    assert [bench.where(request) for request in ("r0", "r1", "r2")] == [A, B, C]
    assert bench.down(A).sent() == [], "both others are busy, and one of them is kept free from now on"
    assert bench.submit("r3").where("r3") == C
    assert bench.submit("r4").where("r4") == C
    assert bench.chunk("r1", 65, finish_reason="stop").sent() == ["r0.0"]
    assert bench.where("r0") == B


def test_a_reservation_ends_when_the_engine_is_the_last_one() -> None:
    bench = Bench().up(A).submit("r0").down(A).up(A, B, C).submit("r1").submit("r2").down(A)
    assert bench.down(C).sent() == ["r2.0"]
    assert bench.where("r2") == B
    assert bench.submit("r3").where("r3") == B


def test_quarantine_is_never_on_a_spare() -> None:
    bench = Bench().up(A).submit("r0").down(A).up(A).down(A).up(B, spare=True)
    assert bench.sent() == []
    assert bench.up(A).where("r0") == A


def test_a_suspect_that_others_keep_out_is_let_in_when_half_of_its_time_is_over() -> None:
    bench = Bench(timeout=100.0).up(A).submit("r0").down(A).up(A).down(A)
    bench.submit("r1").submit("r2").up(A)
    assert bench.sent() == ["r1.0", "r2.0"]
    bench.wait(50.0)
    assert bench.submit("r3").sent() == [], "the engine is kept free for it"
    assert bench.chunk("r1", 65, finish_reason="stop").sent() == []
    assert bench.chunk("r2", 65, finish_reason="stop").sent() == ["r0.0"]
    assert bench.chunk("r0", 65, finish_reason="stop").sent() == ["r3.0"]


def test_a_suspect_whose_lost_finish_can_be_made_good_is_not_poison() -> None:
    bench = Bench().up(A).submit("r0", {"temperature": 0, "max_tokens": 1})
    bench.down(A).up(A).down(A).up(A).chunk("r0", 65).down(A)
    assert bench.of(Fail) == []
    assert len(bench.of(Finish)) == 1


# Timers


def test_after_one_deadline_the_next_one_is_asked_for() -> None:
    bench = Bench().up(A).submit("r0", timeout=5.0).submit("r1", timeout=9.0)
    assert [effect.at for effect in bench.of(NextDeadline, ever=True)] == [5.0]
    assert [effect.at for effect in bench.wait(5.0).of(NextDeadline)] == [9.0]
    assert [fail.request for fail in bench.wait(4.0).of(Fail)] == ["r1"]


def test_finished_requests_leave_nothing_behind() -> None:
    bench = Bench().up(A)
    for number in range(500):
        bench.submit(f"r{number}").chunk(f"r{number}", 65, finish_reason="stop")
    assert list(bench.scheduler.samples) == []
    assert len(bench.scheduler._timers._heap) < 100


def test_a_deadline_and_the_end_of_a_suspects_patience_at_the_same_tick_fail_it_once() -> None:
    bench = Bench(timeout=10.0).up(A).submit("r0").submit("r1").down(A).up(A).down(A)
    assert [fail.request for fail in bench.wait(10.0).of(Fail)] == ["r0", "r1"]
    assert bench.scheduler.counts.failed == 2


# Errors in the bookkeeping


@pytest.mark.parametrize(
    "odd",
    [{"text": None}, {"token_ids": None}, {"logprobs": ((None,),)}, {"prompt_token_ids": 5, "text": None}],
)
def test_an_item_that_makes_no_sense_fails_its_request_only(odd: dict[str, Any]) -> None:
    bench = Bench().up(A).submit("r0").submit("r1")
    items = [Chunk("r0.0", 1, (65,), "A")._replace(**odd), Chunk("r1.0", 1, (66,), "B")]
    bench.note(bench.scheduler.items(A, 1, items, 0.0))
    assert bench.of(Fail)[0].request == "r0"
    assert isinstance(bench.error().__cause__, TypeError | AttributeError)
    assert "r0" in str(bench.error())
    assert [deliver.request for deliver in bench.of(Deliver)] == ["r1"]
    assert bench.of(Abort) == [Abort(A, 1, (("r0.0", 1),))]


@pytest.mark.parametrize("event", ["down", "resync", "withdraw", "lost", "order", "alone"])
def test_an_error_about_one_request_fails_that_one_whatever_the_event(event: str) -> None:
    bench = Bench().up(A).submit("r0").submit("r1").chunk("r0", 65).chunk("r1", 66)
    broken = next(state for state in bench.scheduler.samples if state.request.id == "r0")
    if event == "order":
        broken.sample._text = broken.sample.prompt_token_ids = None  # type: ignore[assignment]
    elif event != "alone":
        broken.sample.prompt_token_ids = 5  # type: ignore[assignment]
    if event in ("down", "order"):
        bench.down(A).up(A)
    elif event == "lost":
        bench.lost("r0")
    elif event == "resync":
        bench.note(bench.scheduler.resync(A, 1, "the stream broke", 0.0))
    elif event == "alone":
        bench.down(A).up(A).down(A).up(A)
        assert bench.sent() == ["r0.0"], "it runs alone"
        bench.chunk("r0", 67)
        broken.sample.prompt_token_ids = 5  # type: ignore[assignment]
        bench.down(A).up(A)
    else:
        bench.note(bench.scheduler.withdraw(A, "paused", 0.0))
    assert [fail.request for fail in bench.of(Fail, ever=True)] == ["r0"]
    assert bench.where("r1") == A
    assert len(bench.chunk("r1", 67, finish_reason="stop").of(Finish)) == 1


def test_a_command_that_is_taken_back_in_the_same_call_is_never_sent() -> None:
    bench = Bench().up(A).submit("r0", {**SAMPLED, "n": 2}, on_weights_changed="fail").chunk("r0.1", 65)
    bench.scheduler.weights(A, 1, 1)
    bench.note(bench.scheduler.withdraw(A, "paused", 0.0))
    assert [fail.request for fail in bench.of(Fail)] == ["r0"]
    assert bench.sent() == []
