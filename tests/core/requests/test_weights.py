"""Requests whose weights change while they run, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from rayvisor._core.protocol.wire import Chunk
from rayvisor._core.requests.effects import Abort, Deliver, Fail, Finish, SendCommands
from rayvisor._core.requests.errors import InvalidRequestError, WeightsChangedError
from tests.core.requests.test_scheduler import SAMPLED, A, B, Bench

OLD, NEW = 7, 8


def up(bench: Bench, child: str) -> Bench:
    """Bring an engine up with the old weights."""
    bench.up(child)
    bench.scheduler.weights(child, bench.incarnations[child], OLD)
    return bench


def changed(bench: Bench, child: str, version: int | None = NEW) -> Bench:
    """Declare an engine stale, have its hook set a version, and let it serve again."""
    stale(bench, child)
    if version is not None:
        bench.scheduler.weights(child, bench.incarnations[child], version)
    return bench.note(bench.scheduler.gate(child, is_open=True, now=bench.now))


def stale(bench: Bench, child: str) -> Bench:
    bench.note(bench.scheduler.gate(child, is_open=False, now=bench.now))
    return bench.note(bench.scheduler.stale(child, bench.now))


def one(bench: Bench, how: str, **more: Any) -> Bench:
    return up(bench, A).submit("r", on_weights_changed=how, **more).chunk("r", 65, 66)


@pytest.mark.parametrize("params", [None, SAMPLED], ids=["greedy", "sampled"])
def test_spliced_it_goes_on_behind_its_tokens_and_no_chunk_is_of_two_versions(params: Any) -> None:
    bench = stale(one(Bench(), "splice", params=params), A)
    assert bench.of(Abort)
    # What the engine had under way with the old weights comes too late.
    assert not bench.note(bench.scheduler.items(A, 1, [Chunk("r.0", 1, (66,), "B")], 0.0)).of(Deliver)
    bench.scheduler.weights(A, 1, NEW)
    bench.note(bench.scheduler.gate(A, is_open=True, now=0.0))
    assert (bench.at["r.0"][2].delivered, bench.at["r.0"][2].attempt) == ((65, 66), 2)
    bench.chunk("r", 67, finish_reason="length")
    versions = [effect.chunk.weight_version for effect in bench.of(Deliver, ever=True)]
    assert versions == [OLD, NEW]
    (finish,) = bench.of(Finish)
    assert finish.completion.token_ids == (65, 66, 67)
    assert finish.completion.weight_versions == (OLD, NEW)
    assert finish.completion.samples[0].attempts == 1


def test_what_cannot_go_on_behind_its_tokens_stays_where_it_is() -> None:
    bench = changed(one(Bench(), "splice", params={"stop": ["x"]}), A)
    assert not bench.of(Abort, ever=True)
    bench.chunk("r", 67)
    assert bench.of(Deliver)[0].chunk.weight_version == NEW


def test_where_nobody_says_which_weights_there_are_it_stays_where_it_is() -> None:
    bench = one(Bench(), "splice")
    bench.scheduler.routing.engines[A].versioned = False
    assert not changed(bench, A, None).of(Abort, ever=True)


def test_restarted_it_leaves_at_once_begins_anew_and_nothing_old_is_in_its_completion() -> None:
    bench = stale(one(Bench(), "restart", params={**SAMPLED, "logprobs": 0}), A)
    assert bench.of(Abort)
    assert not bench.of(SendCommands)
    bench.scheduler.weights(A, 1, NEW)
    bench.note(bench.scheduler.gate(A, is_open=True, now=0.0))
    _, _, order = bench.at["r.0"]
    assert (order.delivered, order.prompt, order.attempt) == ((), "once", 2)
    bench.chunk("r", 70, finish_reason="length")
    (deliver,) = bench.of(Deliver)
    assert (deliver.chunk.token_ids, deliver.chunk.restarted, deliver.chunk.weight_version) == (
        (70,),
        True,
        NEW,
    )
    (finish,) = bench.of(Finish)
    assert (finish.completion.text, finish.completion.weight_versions) == ("F", (NEW,))
    assert finish.completion.samples[0].attempts == 1
    assert finish.completion.usage.completion_tokens == 1


def test_restart_is_said_once_and_only_where_something_is_void() -> None:
    bench = changed(up(Bench(), A).submit("r", on_weights_changed="restart"), A).chunk("r", 65)
    assert not bench.of(Deliver)[0].chunk.restarted
    changed(bench, A, NEW + 1).chunk("r", 66)
    assert bench.of(Deliver)[0].chunk.restarted
    bench.chunk("r", 67)
    assert not bench.of(Deliver)[0].chunk.restarted


@pytest.mark.parametrize("how", ["restart", "fail"])
def test_with_the_same_weights_after_all_it_goes_on_behind_what_was_delivered(how: str) -> None:
    bench = changed(one(Bench(), how), A, None)
    _, _, order = bench.at["r.0"]
    assert order.delivered == (65, 66)
    assert not bench.chunk("r", 67).of(Deliver)[0].chunk.restarted


def test_failing_it_fails_once_it_would_go_on_with_others_and_says_both_versions() -> None:
    bench = changed(one(Bench(), "fail"), A)
    (fail,) = bench.of(Fail)
    assert isinstance(fail.error, WeightsChangedError)
    assert (fail.error.before, fail.error.after, fail.error.delivered) == (OLD, NEW, 2)
    assert not bench.scheduler.routing.engines[A].in_flight


def test_failing_one_with_nothing_delivered_begins_on_the_new_weights() -> None:
    bench = changed(up(Bench(), A).submit("r", on_weights_changed="fail"), A)
    assert bench.at["r.0"][2].attempt == 2
    bench.chunk("r", 65, finish_reason="length")
    assert bench.of(Finish)[0].completion.weight_versions == (NEW,)


@pytest.mark.parametrize(("how", "delivered"), [("splice", (65, 66)), ("restart", ())])
def test_an_engine_that_dies_leaves_its_requests_to_one_with_other_weights(
    how: str, delivered: tuple[int, ...]
) -> None:
    bench = up(one(Bench(), how), B)
    bench.scheduler.weights(B, 1, NEW)
    bench.down(A)
    child, _, order = bench.at["r.0"]
    assert (child, order.delivered) == (B, delivered)


def test_a_sampled_one_is_spliced_where_generating_it_again_could_only_come_out_different() -> None:
    bench = up(one(Bench(), "splice", params=SAMPLED), B)
    bench.scheduler.weights(B, 1, NEW)
    assert bench.down(A).at["r.0"][2].delivered == (65, 66)


def test_what_an_engine_says_of_a_past_incarnation_changes_nothing_and_the_next_begins_with_its_own() -> None:
    bench = up(Bench(), A)
    bench.scheduler.weights(A, 1, NEW)
    up(bench.down(A), A)
    bench.scheduler.weights(A, 1, NEW)
    bench.submit("r").chunk("r", 65)
    assert bench.of(Deliver)[0].chunk.weight_version == OLD


def test_each_request_may_choose_and_a_choice_that_is_none_is_refused() -> None:
    bench = up(Bench(on_weights_changed="restart"), A)
    bench.submit("a").submit("b", on_weights_changed="splice").chunk("a", 65).chunk("b", 65)
    changed(bench, A)
    assert [len(bench.at[key][2].delivered) for key in ("a.0", "b.0")] == [0, 1]
    with pytest.raises(InvalidRequestError, match=r"on_weights_changed='stop': must be one of 'splice'"):
        bench.submit("c", on_weights_changed="stop")
