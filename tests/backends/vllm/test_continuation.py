"""Continuation from prompt and delivered tokens: tokens and text are those of a run without a fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayvisor._backends.host.engine import RequestRefusedError
from tests.backends.driving import Result, Served, order
from tests.backends.tiny_model import byte_tokens

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _carry_on_everywhere(
    served: Served, prompt: str, whole: Result, **params: Any
) -> list[tuple[tuple[int, ...], int, Result]]:
    """Cut a run after each of its chunks, and have the engine continue from there."""
    cuts = []
    for index in range(1, len(whole.chunks)):
        before = Result(whole.chunks[:index])
        cuts.append((before.tokens, len(before.text)))
    rests = await asyncio.gather(
        *(
            served.run(order(byte_tokens(prompt), delivered=tokens, characters=characters, **params))
            for tokens, characters in cuts
        )
    )
    return [(tokens, characters, rest) for (tokens, characters), rest in zip(cuts, rests, strict=True)]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"logit_bias": {"195": 3.0, "169": 3.0}},
        # Bytes of é, € and a smile, which the model splits and combines at random.
        {"allowed_token_ids": [0xC3, 0xA9, 0xE2, 0x82, 0xAC]},
        {"allowed_token_ids": [0xF0, 0x9F, 0x99, 0x82]},
        {"allowed_token_ids": [0xC3, 0xA9]},
    ],
    ids=["free", "bias", "euro", "smile", "accent"],
)
@pytest.mark.parametrize("prompt", ["Once upon a time", "caf\u00e9 \u20ac"])
async def test_a_greedy_text_goes_on_anywhere_as_if_nothing_had_happened(
    served: Served, prompt: str, params: dict[str, Any]
) -> None:
    params = {"max_tokens": 24, "ignore_eos": True, **params}
    whole = await served.run(order(prompt, **params))
    for tokens, characters, rest in await _carry_on_everywhere(served, prompt, whole, **params):
        assert tokens + rest.tokens == whole.tokens
        assert whole.text[:characters] + rest.text == whole.text
        assert rest.finish == whole.finish
        assert rest.prompt == whole.prompt


async def test_the_cuts_of_these_tests_do_split_characters(served: Served) -> None:
    whole = await served.run(
        order("Once upon a time", max_tokens=24, ignore_eos=True, allowed_token_ids=[0xC3, 0xA9])
    )
    assert "é" in whole.text
    # A naive continuation would decode each part alone.
    parts = [bytes(chunk.token_ids).decode(errors="replace") for chunk in whole.chunks]
    assert "".join(parts) != whole.text


async def test_a_penalty_counts_only_what_this_run_put_out_so_the_text_would_differ(served: Served) -> None:
    # With few tokens to choose from, they repeat and the penalty has an effect.
    params: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "allowed_token_ids": [97, 98, 99, 100]}
    params |= {"frequency_penalty": 2.0, "presence_penalty": 2.0}
    whole = await served.run(order("Once upon a time", **params))
    carried = await _carry_on_everywhere(served, "Once upon a time", whole, **params)
    assert any(tokens + rest.tokens != whole.tokens for tokens, _, rest in carried)


async def test_sampling_goes_by_the_position_in_this_run_so_the_text_would_differ(served: Served) -> None:
    params: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "temperature": 1.0, "seed": 7}
    whole = await served.run(order("Once upon a time", **params))
    carried = await _carry_on_everywhere(served, "Once upon a time", whole, **params)
    assert any(tokens + rest.tokens != whole.tokens for tokens, _, rest in carried)


async def test_a_minimum_of_tokens_counts_the_delivered_ones(served: Served) -> None:
    assert served.info is not None
    (eos,) = served.info.eos_token_ids
    params: dict[str, Any] = {"max_tokens": 24, "min_tokens": 10, "logit_bias": {eos: 100.0}}
    whole = await served.run(order("A", **params))
    assert len(whole.tokens) == 11
    for tokens, _, rest in await _carry_on_everywhere(served, "A", whole, **params):
        assert tokens + rest.tokens == whole.tokens
        assert rest.finish == "stop"


async def test_a_stop_string_across_the_seam_is_found(served: Served) -> None:
    letters = list(range(0x61, 0x7B))
    free = await served.run(order("A", max_tokens=24, ignore_eos=True, allowed_token_ids=letters))
    params: dict[str, Any] = {
        "max_tokens": 24,
        "ignore_eos": True,
        "allowed_token_ids": letters,
        "stop": [free.text[9:13]],
    }
    whole = await served.run(order("A", **params))
    for _, characters, rest in await _carry_on_everywhere(served, "A", whole, **params):
        assert whole.text[:characters] + rest.text == whole.text
        assert (rest.finish, rest.chunks[-1].stop_reason) == ("stop", whole.chunks[-1].stop_reason)


async def test_when_nothing_is_left_to_generate_the_stream_ends_at_once(served: Served) -> None:
    whole = await served.run(order("A", max_tokens=8, ignore_eos=True))
    rest = await served.run(
        order(byte_tokens("A"), delivered=whole.tokens, characters=len(whole.text), max_tokens=8)
    )
    assert (rest.tokens, rest.text, rest.finish) == ((), "", "length")
    full = order([65] * 250, delivered=(66,) * 6, characters=6, max_tokens=None)
    assert (await served.run(full)).finish == "length"


async def test_text_as_prompt_cannot_be_carried_on(served: Served) -> None:
    with pytest.raises(RequestRefusedError, match="token ids"):
        await served.run(order("A", delivered=(66,), characters=1))
