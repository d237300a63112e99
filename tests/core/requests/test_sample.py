"""One sample across the deaths of its engines."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from rayvisor._core.protocol.wire import Chunk, EngineInfo, LogprobEntry
from rayvisor._core.requests.continuation import plan, split
from rayvisor._core.requests.results import Divergence
from rayvisor._core.requests.sample import Accepted, Origin, Sample

GREEDY = {"temperature": 0, "max_tokens": 6}
SAMPLED = {"temperature": 1.0, "max_tokens": 6, "seed": 3}
HERE = Origin("llm/1", 1, 0)
INFO = EngineInfo("vllm", "0.32", 20, 8, (2, 3), (), 1.0)
PROMPT = (10, 11, 12)


def sample_of(params: dict[str, Any], prompt: Any = "once") -> Sample:
    found = plan(params, prompt)
    return Sample("r1.0", 0, prompt, split(found, Random(1))[0], found)


def send(sample: Sample, tokens: tuple[int, ...], text: str = "", **more: Any) -> Accepted | None:
    return sample.accept(Chunk("r1.0", sample.attempt, tokens, text, **more), HERE)


def delivered(accepted: Accepted | None) -> tuple[tuple[int, ...], str] | None:
    assert accepted is not None
    return None if accepted.chunk is None else (accepted.chunk.token_ids, accepted.chunk.text)


def begun(params: dict[str, Any], tokens: tuple[int, ...], text: str) -> Sample:
    """A sample that has delivered this much, and lost its engine."""
    sample = sample_of(params)
    sample.order()
    send(sample, tokens, text, prompt_token_ids=PROMPT)
    return sample


def test_the_first_order_is_the_request_itself() -> None:
    sample = sample_of(SAMPLED)
    order = sample.order()
    assert (order.prompt, order.attempt, order.delivered, order.characters) == ("once", 1, (), 0)
    assert order.params["seed"] == 3


def test_greedy_goes_on_behind_what_was_delivered() -> None:
    sample = begun(GREEDY, (5, 6), "a")  # the second token is half a character
    order = sample.order()
    assert (order.prompt, order.delivered, order.characters) == (PROMPT, (5, 6), 1)
    assert order.params["max_tokens"] == 6, "the engine takes off what was delivered"
    assert delivered(send(sample, (7,), "éb")) == ((7,), "éb")


def test_greedy_without_the_ids_of_its_prompt_is_generated_again() -> None:
    sample = sample_of(GREEDY)
    sample.order()
    send(sample, (5, 6), "ab")
    assert sample.order().delivered == ()
    assert delivered(send(sample, (5, 6, 7), "abc")) == ((7,), "c")


def test_a_replay_skips_the_tokens_and_the_characters_delivered_before() -> None:
    sample = begun(SAMPLED, (5, 6, 7), "ab")  # the text runs behind
    order = sample.order()
    assert (order.prompt, order.delivered, order.params["seed"]) == ("once", (), 3)
    assert delivered(send(sample, (5,), "a")) is None
    assert delivered(send(sample, (6, 7, 8), "bcd")) == ((8,), "cd")
    assert delivered(send(sample, (9,), "e")) == ((9,), "e")


def test_text_that_was_behind_comes_also_when_its_tokens_were_delivered() -> None:
    sample = begun(SAMPLED, (5, 6, 7), "a")
    sample.order()
    assert delivered(send(sample, (5, 6, 7), "abc")) == ((), "bc")


def test_text_that_was_ahead_of_the_replay_is_not_repeated() -> None:
    sample = begun(SAMPLED, (5, 6), "ab")
    sample.order()
    assert delivered(send(sample, (5, 6, 7), "a")) == ((7,), "")
    assert delivered(send(sample, (8,), "bcd")) == ((8,), "cd")


def test_log_probabilities_are_skipped_with_their_tokens_and_summed_once() -> None:
    def entries(*values: float) -> tuple[tuple[LogprobEntry, ...], ...]:
        return tuple((LogprobEntry(1, value, 1, None), LogprobEntry(2, -9.0, 2, None)) for value in values)

    sample = sample_of({**SAMPLED, "logprobs": 2})
    sample.order()
    send(sample, (5, 6), logprobs=entries(-1.0, -2.0))
    sample.order()
    accepted = send(sample, (5, 6, 7), logprobs=entries(-1.0, -2.0, -4.0), finish_reason="stop")
    assert accepted is not None
    assert accepted.chunk is not None
    assert accepted.chunk.logprobs == entries(-4.0)
    result = sample.result(2)
    assert result.cumulative_logprob == pytest.approx(-7.0)
    assert result.logprobs == entries(-1.0, -2.0, -4.0)


def test_the_prompt_is_kept_from_the_first_run() -> None:
    sample = sample_of({**SAMPLED, "prompt_logprobs": 1})
    sample.order()
    scores = (None, (LogprobEntry(11, -0.5, 1, "x"),))
    send(sample, (5,), "a", prompt_token_ids=PROMPT, prompt_logprobs=scores)
    sample.order()
    send(sample, (5, 6), "ab", prompt_token_ids=(9, 9), prompt_logprobs=(None,))
    assert (sample.prompt_token_ids, sample.prompt_logprobs) == (PROMPT, scores)


def test_an_older_attempt_is_void() -> None:
    sample = begun(GREEDY, (5,), "a")
    late = Chunk("r1.0", 1, (6,), "b")
    sample.order()
    assert sample.accept(late, HERE) is None
    assert sample.delivered == [5]


def test_nothing_comes_after_the_end() -> None:
    sample = sample_of(GREEDY)
    sample.order()
    send(sample, (5,), "a", finish_reason="stop", stop_reason=5)
    assert send(sample, (6,), "b") is None
    result = sample.result(1)
    assert (result.token_ids, result.finish_reason, result.stop_reason) == ((5,), "stop", 5)


def test_a_different_token_is_reported_with_its_position_and_nothing_of_it_is_delivered() -> None:
    sample = begun(SAMPLED, (5, 6, 7), "abc")
    sample.order()
    accepted = send(sample, (5, 9, 7, 8), "axcd")
    assert accepted == Accepted(None, Divergence(0, 1, 6, 9))
    assert sample.delivered == [5, 6, 7]
    assert sample.divergences == [Divergence(0, 1, 6, 9)]


def test_an_early_end_is_a_difference_too() -> None:
    sample = begun(SAMPLED, (5, 6, 7), "abc")
    sample.order()
    accepted = send(sample, (5, 6), "ab", finish_reason="stop")
    assert accepted == Accepted(None, Divergence(0, 2, 7, None, "end"))
    assert not sample.finished


def test_different_text_of_equal_tokens_is_reported_and_the_stream_goes_on() -> None:
    sample = begun(SAMPLED, (5, 6), "ab")
    sample.order()
    accepted = send(sample, (5, 6, 7), "aXc")
    assert accepted is not None
    assert accepted.divergence == Divergence(0, 1, "b", "X", "text")
    assert delivered(accepted) == ((7,), "c")
    assert accepted.chunk is not None
    assert accepted.chunk.divergence == accepted.divergence


def test_the_chunk_after_a_splice_carries_the_difference() -> None:
    sample = begun(SAMPLED, (5, 6), "ab")
    sample.order()
    send(sample, (9,), "x")
    assert sample.splice()
    order = sample.order()
    assert (order.prompt, order.delivered, order.characters) == (PROMPT, (5, 6), 2)
    accepted = send(sample, (7,), "c")
    assert accepted is not None
    assert accepted.chunk is not None
    assert accepted.chunk.divergence == Divergence(0, 0, 5, 9)
    following = send(sample, (8,), "d")
    assert following is not None
    assert following.chunk is not None
    assert following.chunk.divergence is None


def test_a_splice_does_not_use_the_first_random_numbers_again() -> None:
    sample = begun(SAMPLED, (5, 6), "ab")
    sample.order()
    sample.splice()
    first = sample.order().params["seed"]
    send(sample, (7,), "c")
    second = sample.order().params["seed"]
    assert len({3, first, second}) == 3


@pytest.mark.parametrize(
    ("params", "tokens", "end"),
    [
        (GREEDY, (5, 2), ("stop", None)),
        (GREEDY, (5, 3), ("stop", 3)),  # a further EOS id of the generation config
        ({**GREEDY, "ignore_eos": True}, (5, 2), None),
        ({**GREEDY, "stop_token_ids": [9]}, (5, 9), ("stop", 9)),
        ({**GREEDY, "ignore_eos": True, "stop_token_ids": [2]}, (5, 2), ("stop", 2)),
        (GREEDY, (5,) * 6, ("length", None)),
        (GREEDY, (5,) * 5, None),
        (GREEDY, (5, 5, 5, 5, 5, 2), ("stop", None)),  # EOS counts before length
        ({"temperature": 0}, (5,) * 16, ("length", None)),  # vLLM's default
        ({"temperature": 0, "max_tokens": None}, (5,) * 16, None),
        ({"temperature": 0, "max_tokens": None}, (5,) * 17, ("length", None)),  # prompt 3 + 17 = 20
        ({**GREEDY, "min_tokens": 3}, (5, 2), None),
        ({**GREEDY, "min_tokens": 2}, (5, 2), ("stop", None)),
        ({**GREEDY, "stop": ["x"]}, (5,) * 6, None),  # text may have been held back: generate again
        (SAMPLED, (5,) * 6, ("length", None)),
    ],
)
def test_a_finish_that_was_lost_is_made_good(
    params: dict[str, Any], tokens: tuple[int, ...], end: tuple[str, Any] | None
) -> None:
    sample = begun(params, tokens, "")
    chunk = sample.finish_if_due(INFO, HERE)
    assert (chunk and (chunk.finish_reason, chunk.stop_reason)) == end
    assert sample.finished == (end is not None)
    assert sample.delivered == list(tokens)


def test_nothing_delivered_is_never_finished() -> None:
    sample = sample_of(GREEDY)
    sample.order()
    assert sample.finish_if_due(INFO, HERE) is None
