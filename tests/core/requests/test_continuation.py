"""The design's table, row by row."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from rayvisor._core.requests.continuation import Continuation, plan, split
from rayvisor._core.requests.errors import InvalidRequestError

GREEDY = {"temperature": 0}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"seed": 3},
        {"temperature": 1e-6},
        {"logit_bias": {5: -100.0}},
        {"allowed_token_ids": [1, 2, 3]},
        {"stop_token_ids": [7]},
        {"ignore_eos": True, "max_tokens": None},
        {"logprobs": 5, "prompt_logprobs": 1},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "repetition_penalty": 1.0},
        {"stop": None, "bad_words": [], "min_tokens": 0, "structured_outputs": None},
        {"top_p": 0.9, "top_k": 20},
        {"something_new": None},
    ],
)
def test_plain_greedy_goes_on_from_the_delivered_tokens(params: dict[str, Any]) -> None:
    found = plan({**GREEDY, **params}, "once")
    assert found.continuation is Continuation.PREFIX


@pytest.mark.parametrize(
    ("params", "spliceable"),
    [
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "seed": 5, "top_p": 0.9}, True),
        ({"temperature": None}, True),
        ({"temperature": 1.0, "n": 2}, True),
        ({**GREEDY, "min_tokens": 4}, True),
        ({**GREEDY, "presence_penalty": 0.5}, False),
        ({**GREEDY, "frequency_penalty": -0.5}, False),
        ({**GREEDY, "repetition_penalty": 1.1}, False),
        ({**GREEDY, "structured_outputs": {"regex": "a+"}}, False),
        ({**GREEDY, "stop": "."}, False),
        ({**GREEDY, "stop": ["."]}, False),
        ({**GREEDY, "bad_words": ["no"]}, False),
        ({**GREEDY, "logits_processors": [object()]}, False),
        ({**GREEDY, "repetition_detection": {"max_pattern_size": 3}}, False),
        ({**GREEDY, "something_new": 0}, False),
        ({"temperature": 1.0, "presence_penalty": 0.5}, False),
    ],
)
def test_everything_else_is_generated_again(params: dict[str, Any], *, spliceable: bool) -> None:
    found = plan(params, "once")
    assert (found.continuation, found.spliceable) == (Continuation.REGENERATE, spliceable)


def test_without_parameters_a_request_is_sampled_as_vllm_has_it() -> None:
    found = plan(None, "once")
    assert found.sampled
    assert found.continuation is Continuation.REGENERATE
    assert found.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "params"),
    [("once", {**GREEDY, "use_beam_search": True}), ({"prompt_embeds": object()}, GREEDY)],
)
def test_what_cannot_be_moved_is_refused(prompt: Any, params: dict[str, Any]) -> None:
    found = plan(params, prompt)
    assert found.continuation is Continuation.REFUSE
    assert not found.spliceable


def test_embeddings_with_their_source_are_generated_again() -> None:
    found = plan(GREEDY, {"prompt_embeds": object(), "prompt": "once"})
    assert found.continuation is Continuation.REGENERATE


@pytest.mark.parametrize(
    ("content", "continuation"),
    [
        ("once", Continuation.PREFIX),
        ([{"type": "text", "text": "once"}], Continuation.PREFIX),
        ([{"type": "image_url", "image_url": {}}], Continuation.REGENERATE),
    ],
)
def test_chat_messages_go_on_only_where_tokens_say_it_all(content: Any, continuation: Continuation) -> None:
    assert plan(GREEDY, [{"role": "user", "content": content}]).continuation is continuation


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"n": 0}, "params['n']"),
        ({"n": True}, "params['n']"),
        ({"n": None}, "params['n']"),
        ({"n": 2, "temperature": 0}, "params['n']"),
        ({"max_tokens": 0}, "params['max_tokens']"),
        ({"max_tokens": "many"}, "params['max_tokens']"),
        ({"min_tokens": -1}, "params['min_tokens']"),
        ({"seed": 1.5}, "params['seed']"),
        ({"temperature": "hot"}, "params['temperature']"),
        ({"stop_token_ids": "ab"}, "params['stop_token_ids']"),
        ({"output_kind": 2}, "params['output_kind']"),
        ({1: 2}, "params"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(params: dict[Any, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(params, "once")
    assert caught.value.field == field
    assert repr(caught.value.value) in str(caught.value)


@pytest.mark.parametrize("params", [3, [1], "n=1"])
def test_parameters_must_be_a_mapping(params: Any) -> None:
    with pytest.raises(InvalidRequestError, match="mapping"):
        plan(params, "once")


@pytest.mark.parametrize("prompt", [None, 3, [], [1, -1], [True], [1, "a"], [{"content": "x"}], b"once"])
def test_a_wrong_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(GREEDY, prompt)
    assert caught.value.field == "prompt"


def test_a_sampled_request_is_given_a_seed_and_samples_count_up_from_it() -> None:
    samples = split(plan({"n": 3, "prompt_logprobs": 1}, "once"), Random(1))
    seeds = [params["seed"] for params in samples]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert [params["n"] for params in samples] == [1, 1, 1]
    assert ["prompt_logprobs" in params for params in samples] == [True, False, False]


def test_a_seed_of_the_caller_is_kept() -> None:
    assert [params["seed"] for params in split(plan({"n": 2, "seed": 40}, "once"), Random(1))] == [40, 41]


def test_minus_one_is_no_seed() -> None:
    assert split(plan({"seed": -1}, "once"), Random(1))[0]["seed"] >= 0


def test_seeds_can_be_switched_off() -> None:
    assert "seed" not in split(plan({}, "once"), Random(1), seeds=False)[0]


def test_a_greedy_request_is_given_no_seed() -> None:
    assert "seed" not in split(plan(GREEDY, "once"), Random(1))[0]
