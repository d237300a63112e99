"""The contract of an engine with its requests, on the simulated and on the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from rayvisor._backends.host.engine import RequestRefusedError
from rayvisor._core.protocol.wire import Chunk
from rayvisor.faults import Cause
from tests.backends.driving import Result, Served, order
from tests.backends.tiny_model import byte_tokens
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LETTERS = list(range(0x61, 0x7B))


async def test_the_last_chunk_and_no_other_has_a_finish_reason(served: Served) -> None:
    result = await served.run(order("Once upon a time", max_tokens=12, ignore_eos=True))
    assert [chunk.finish_reason for chunk in result.chunks[:-1]] == [None] * (len(result.chunks) - 1)
    assert result.finish == "length"
    assert len(result.tokens) == 12


async def test_the_first_chunk_and_no_other_has_the_prompt_s_token_ids(served: Served) -> None:
    result = await served.run(order("héllo", max_tokens=6, ignore_eos=True))
    assert result.prompt == tuple(byte_tokens("héllo"))
    assert all(chunk.prompt_token_ids is None for chunk in result.chunks[1:])


async def test_text_and_its_token_ids_are_the_same_prompt(served: Served) -> None:
    as_text, as_ids = await asyncio.gather(
        served.run(order("Call me Ishmael", max_tokens=20)),
        served.run(order(byte_tokens("Call me Ishmael"), max_tokens=20)),
    )
    assert as_text.tokens == as_ids.tokens
    assert as_text.text == as_ids.text


async def test_chat_messages_go_through_the_chat_template(served: Served) -> None:
    result = await served.run(order([{"role": "user", "content": "hi"}], max_tokens=4))
    assert bytes(result.prompt).decode() == "user: hi\nassistant: "


async def test_greedy_tokens_are_the_same_every_time_alone_and_in_company(served: Served) -> None:
    alone = await served.run(order("A", max_tokens=40, ignore_eos=True))
    company = await asyncio.gather(
        *(served.run(order(text, max_tokens=40, ignore_eos=True)) for text in ("A", "B", "C"))
    )
    assert company[0].tokens == alone.tokens
    assert company[0].text == alone.text
    assert company[1].tokens != alone.tokens


async def test_a_seed_makes_sampling_repeatable_and_no_seed_does_not(served: Served) -> None:
    def sampled(**params: Any) -> Any:
        return served.run(order("A", temperature=1.0, max_tokens=40, ignore_eos=True, **params))

    first, again, other, free, freer = await asyncio.gather(
        sampled(seed=1), sampled(seed=1), sampled(seed=2), sampled(), sampled()
    )
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens
    assert free.tokens != freer.tokens


async def test_without_max_tokens_sixteen_come_and_with_none_the_model_is_filled(served: Served) -> None:
    default, full = await asyncio.gather(
        served.run(order("x" * 200, ignore_eos=True)),
        served.run(order("x" * 200, max_tokens=None, ignore_eos=True)),
    )
    assert len(default.tokens) == 16
    assert len(full.tokens) == 56
    assert full.finish == "length"


async def test_a_stop_string_ends_the_text_before_it(served: Served) -> None:
    free = await served.run(order("A", max_tokens=40, ignore_eos=True, allowed_token_ids=LETTERS))
    stop = free.text[10:13]
    result = await served.run(
        order("A", max_tokens=40, ignore_eos=True, allowed_token_ids=LETTERS, stop=[stop])
    )
    assert result.finish == "stop"
    assert result.chunks[-1].stop_reason == stop
    assert result.text == free.text[: free.text.index(stop)]


async def test_a_stop_token_ends_the_text_and_is_named(served: Served) -> None:
    free = await served.run(order("A", max_tokens=40, ignore_eos=True, allowed_token_ids=LETTERS))
    stop = free.tokens[7]
    result = await served.run(
        order("A", max_tokens=40, ignore_eos=True, allowed_token_ids=LETTERS, stop_token_ids=[stop])
    )
    assert result.finish == "stop"
    assert result.chunks[-1].stop_reason == stop
    assert result.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert result.text == free.text[: free.tokens.index(stop)]


async def test_the_end_of_text_token_ends_the_text(served: Served) -> None:
    assert served.info is not None
    (eos,) = served.info.eos_token_ids
    result = await served.run(order("A", max_tokens=40, logit_bias={str(eos): 100.0}, min_tokens=5))
    assert result.finish == "stop"
    assert result.chunks[-1].stop_reason is None
    assert len(result.tokens) == 6
    assert result.tokens[-1] == eos


async def test_log_probabilities_come_with_each_token_the_sampled_one_first(served: Served) -> None:
    result = await served.run(order("A", max_tokens=8, ignore_eos=True, logprobs=2))
    entries = [position for chunk in result.chunks for position in chunk.logprobs or ()]
    assert [position[0].token_id for position in entries] == list(result.tokens)
    assert all(2 <= len(position) <= 3 for position in entries)
    assert all(position[0].rank == 1 and position[0].logprob <= 0 for position in entries)


async def test_log_probabilities_of_the_prompt_come_once_the_first_token_has_none(served: Served) -> None:
    result = await served.run(order("hello", max_tokens=4, ignore_eos=True, prompt_logprobs=0))
    found = result.chunks[0].prompt_logprobs
    assert found is not None
    assert found[0] is None
    assert [position[0].token_id for position in found[1:] if position] == byte_tokens("ello")
    assert all(chunk.prompt_logprobs is None for chunk in result.chunks[1:])


async def test_a_choice_as_structured_output_is_kept(served: Served) -> None:
    result = await served.run(
        order("A", max_tokens=40, structured_outputs={"choice": ["positive", "negative"]})
    )
    assert result.text in ("positive", "negative")
    assert result.finish == "stop"


@pytest.mark.parametrize(
    ("prompt", "params", "said"),
    [
        ("A", {"temprature": 1.0}, "temprature"),
        ("A", {"top_p": 7.0}, "top_p"),
        ("A", {"temperature": -1.0}, "temperature"),
        ("A", {"max_tokens": 0}, "max_tokens"),
        ("A", {"n": 2}, "n must be 1"),
        ("A", {"structured_outputs": {"nonsense": 1}}, "nonsense"),
        ("x" * 300, {}, "256|255"),
        ([9999], {}, "9999|vocabulary"),
        (["A", None], {}, "prompt"),
    ],
)
async def test_a_wrong_request_is_refused_with_what_is_wrong(
    served: Served, prompt: Any, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestRefusedError, match=said) as refused:
        await served.run(order(prompt, **params))
    assert all(isinstance(cause, Cause) for cause in refused.value.causes)
    assert (await served.run(order("A", max_tokens=2, ignore_eos=True))).finish == "length"


async def test_an_abort_that_was_asked_for_ends_the_stream_without_a_finish_reason(served: Served) -> None:
    given = order("A", max_tokens=200, ignore_eos=True)
    result = Result()
    task = asyncio.create_task(served.run(given, result))
    await until(lambda: result.chunks)
    await served.live.abort([given.request, "unknown"])
    await asyncio.wait_for(task, 60)
    assert result.finish is None
    assert len(result.tokens) < 200


async def test_closing_a_stream_frees_its_place_in_the_engine(served: Served) -> None:
    # More than there are places: the last would wait for all 200 tokens of another.
    many = [
        cast("AsyncGenerator[Chunk, None]", served.live.generate(order("A", max_tokens=200, ignore_eos=True)))
        for _ in range(8)
    ]
    await asyncio.gather(*(anext(stream) for stream in many))
    await asyncio.gather(*(stream.aclose() for stream in many))
    slow, quick = Result(), Result()
    task = asyncio.create_task(served.run(order("A", max_tokens=200, ignore_eos=True), slow))
    await served.run(order("B", max_tokens=2, ignore_eos=True), quick)
    assert slow.finish is None
    await served.live.abort([])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_engine_says_what_it_is(served: Served) -> None:
    info = served.info
    assert info is not None
    assert info.engine == served.kind
    assert (info.max_model_len, info.max_num_seqs) == (256, 8)
    names = [process.name.rpartition("::")[2] for process in info.processes]
    assert names == ["EngineCore", "Worker"]
    assert served.phases[-1] == "ready"
