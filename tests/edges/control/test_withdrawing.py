"""The request scheduler when an operator withdraws requests from an engine or holds them there."""

from __future__ import annotations

from rayvisor._core.requests.effects import Abort, Fail, Flow
from rayvisor._core.requests.state import Place
from tests.core.requests.test_scheduler import GREEDY, A, B, Bench


def withdraw(bench: Bench, child: str) -> Bench:
    return bench.note(bench.scheduler.withdraw(child, "paused", bench.now))


def keep(bench: Bench, child: str, *, kept: bool) -> Bench:
    return bench.note(bench.scheduler.hold(child, held=kept, now=bench.now))


def test_what_is_taken_off_an_engine_goes_to_another_one_behind_what_was_delivered() -> None:
    bench = Bench().up(A, B).submit("r", max_attempts=1)
    bench.chunk("r", 65, 66)
    bench.scheduler.gate(A, is_open=False, now=bench.now)
    withdraw(bench, A)
    assert [abort.child for abort in bench.of(Abort)] == [A]
    assert bench.where("r") == B
    assert bench.at["r.0"][2].delivered == (65, 66)
    bench.chunk("r", 67, finish_reason="stop")
    assert not bench.of(Fail, ever=True)


def test_it_is_neither_a_strike_nor_an_attempt() -> None:
    bench = Bench().up(A).submit("r", max_attempts=1)
    for _ in range(5):
        bench.chunk("r", 65)
        bench.scheduler.gate(A, is_open=False, now=bench.now)
        withdraw(bench, A)
        bench.note(bench.scheduler.gate(A, is_open=True, now=bench.now))
        assert bench.where("r") == A
    (part,) = bench.scheduler.samples
    assert (part.tries, part.request.strikes, part.place) == (1, 0, Place.IN_FLIGHT)


def test_what_cannot_go_on_elsewhere_stays_where_it_is() -> None:
    bench = Bench().up(A, B).submit("r", {"max_tokens": 9, "use_beam_search": True})
    child = bench.where("r")
    bench.chunk("r", 65)
    withdraw(bench, child)
    assert not bench.of(Abort)
    assert not bench.of(Fail)
    bench.chunk("r", 66, finish_reason="stop")
    assert not bench.of(Fail, ever=True)


def test_all_samples_of_a_request_are_taken_off() -> None:
    bench = Bench().up(A).submit("r", {**GREEDY, "n": 3, "temperature": 1.0})
    bench.scheduler.gate(A, is_open=False, now=bench.now)
    withdraw(bench, A)
    assert {part.place for part in bench.scheduler.samples} == {Place.RETURNED}


def test_what_is_kept_is_not_read_and_a_reader_that_catches_up_does_not_open_it() -> None:
    bench = Bench(slow_at=3, fast_at=1).up(A).submit("fast").submit("slow")
    bench.chunk("slow", 65, 66, 67)  # its reader is slow, so it is not read anyway
    keep(bench, A, kept=True)
    assert [(flow.request, flow.open) for flow in bench.of(Flow)] == [("fast.0", False)]
    bench.note(bench.scheduler.taken("slow", 0, 3, bench.now))
    assert [(flow.request, flow.open) for flow in bench.of(Flow)] == [("slow.0", False)]
    keep(bench, A, kept=False)
    assert {(flow.request, flow.open) for flow in bench.of(Flow)} == {("fast.0", True), ("slow.0", True)}
    assert keep(bench, A, kept=False).last == []
    assert keep(bench, "llm/9", kept=True).last == []
    assert withdraw(bench, "llm/9").last == []
