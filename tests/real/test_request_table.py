"""Every row of the request table on the real engine: killed at an exact token, compared with a run without.

The model has random weights: a trained one is sure of its next token and would hide mistakes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.process.identity import alive
from rayvisor.pool import Completion, GenerationChunk
from tests.real.seams import Row, Seams

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.engine,
    pytest.mark.ray,
    pytest.mark.timeout(600),
]

PROMPT = "The rabbit took a watch out of"
LETTERS = [32, *range(97, 123)]
# Every character of these has three bytes, so three tokens: E2 82 AC and its neighbours.
EUROS = [0xE2, 0x82, 0xAC]
GREEDY = {"temperature": 0.0, "max_tokens": 40}
SAMPLED = {"temperature": 0.9, "max_tokens": 40}


def forced(text: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with which the model generates ``text``, whatever its weights."""
    return {"structured_outputs": {"choice": [text]}, "max_tokens": len(text.encode()) + 4, **extra}


PREFIX = [
    Row("greedy", PROMPT, GREEDY),
    Row("greedy with logit_bias", PROMPT, {**GREEDY, "logit_bias": {"101": 4.0, "32": 3.0}}),
    Row("greedy with allowed_token_ids", PROMPT, {**GREEDY, "allowed_token_ids": LETTERS}),
    Row(
        "greedy with stop_token_ids",
        PROMPT,
        {**GREEDY, "allowed_token_ids": LETTERS, "stop_token_ids": [255]},
    ),
    Row("greedy with logprobs", PROMPT, {**GREEDY, "logprobs": 2}),
    Row("greedy with prompt_logprobs", PROMPT, {**GREEDY, "prompt_logprobs": 1, "logprobs": 0}),
    Row("greedy from token ids", list(b"Alice was beginning"), GREEDY),
    Row("greedy from chat", [{"role": "user", "content": "Who are you?"}], GREEDY),
    # Only bytes of E2 82 AC are allowed: wherever the seam is, it is next to or inside a split character.
    *(
        Row(
            f"character split by the seam after {cut} tokens",
            PROMPT,
            {**GREEDY, "allowed_token_ids": EUROS},
            cut,
        )
        for cut in (7, 8, 9)
    ),
]
AGAIN = [
    Row("sampled with a seed", PROMPT, {**SAMPLED, "seed": 11}),
    Row("sampled without a seed", PROMPT, SAMPLED),
    Row("presence penalty", PROMPT, {**GREEDY, "presence_penalty": 1.2}),
    Row("frequency penalty", PROMPT, {**GREEDY, "frequency_penalty": 0.9}),
    Row("repetition penalty", PROMPT, {**GREEDY, "repetition_penalty": 1.3}),
    Row("top_k, top_p and min_p", PROMPT, {**SAMPLED, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 5}),
    Row("bad_words of several tokens", PROMPT, {**GREEDY, "bad_words": ["ab", "the"]}),
    Row("min_tokens", PROMPT, {**GREEDY, "min_tokens": 30}),
    Row("choice", PROMPT, forced("never let a request go", GREEDY | {"max_tokens": 60})),
    Row("regex", PROMPT, {**SAMPLED, "seed": 3, "structured_outputs": {"regex": "[a-d]{30}"}}),
    Row(
        "json",
        PROMPT,
        {
            **SAMPLED,
            "max_tokens": 120,
            "seed": 4,
            "structured_outputs": {
                "json": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "pattern": "^[a-z]{12}$"}},
                    "required": ["name"],
                    "additionalProperties": False,
                }
            },
        },
    ),
    Row("n=2 with a seed", PROMPT, {**SAMPLED, "n": 2, "seed": 21}),
    Row("n=2 without a seed", PROMPT, {**SAMPLED, "n": 2}),
    # The stop string lies across the seam: "st" has been delivered, "op here" has not.
    Row(
        "stop string across the seam",
        PROMPT,
        forced(
            "say it and stop here, not there", {"temperature": 0.0, "stop": ["stop here"], "max_tokens": 60}
        ),
        14,
    ),
    Row("sampled with logprobs", PROMPT, {**SAMPLED, "seed": 9, "logprobs": 3}),
]
FINISH_LOST = [
    Row("finish lost: max_tokens", PROMPT, GREEDY, lose_finish=True),
    Row(
        "finish lost: model length",
        PROMPT,
        {"temperature": 0.0, "max_tokens": None, "ignore_eos": True},
        lose_finish=True,
    ),
    Row("finish lost: end of text", PROMPT, {**GREEDY, "logit_bias": {"256": 100.0}}, lose_finish=True),
    Row(
        "finish lost: stop token",
        PROMPT,
        {**GREEDY, "allowed_token_ids": [97], "stop_token_ids": [97]},
        lose_finish=True,
    ),
    Row("finish lost: sampled", PROMPT, {**SAMPLED, "seed": 13}, lose_finish=True),
    Row(
        "finish lost: stop string",
        PROMPT,
        forced("go on until the end now", {"temperature": 0.0, "stop": ["end"], "max_tokens": 60}),
        lose_finish=True,
    ),
]
ROWS = [*PREFIX, *AGAIN, *FINISH_LOST]


@dataclass
class Read:
    """One row as its reader received it, and the same request without a fault."""

    row: Row
    chunks: list[GenerationChunk]
    killed: Completion
    plain: Completion


async def _collect(pool: rv.EnginePool, row: Row, seams: Seams) -> tuple[list[GenerationChunk], Completion]:
    generation = pool.generate(row.prompt, row.params)
    seams.cuts[generation.request] = row
    chunks = [chunk async for chunk in generation]
    return chunks, await generation.result()


async def _plain(pool: rv.EnginePool, row: Row, killed: Completion) -> Completion:
    params = dict(row.params)
    if killed.samples[0].seed is not None:
        params["seed"] = killed.samples[0].seed
    return await pool.generate(row.prompt, params).result()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reads(supervisor: rv.Supervisor) -> dict[str, Read]:
    """Run all rows concurrently with one kill and one recovery, then each again without a fault."""
    pool = supervisor.pool("llm")
    child = (await supervisor.which_children("llm"))[0]
    seams = Seams(pool._runtime, until=child.incarnation)
    remove = seams.install()
    tasks = [asyncio.create_task(_collect(pool, row, seams)) for row in ROWS]
    samples = sum(int(row.params.get("n", 1)) for row in ROWS)
    async with asyncio.timeout(120):
        while len(seams.cut) < samples:
            failed = [task for task in tasks if task.done()]
            assert not failed, [task.exception() or task.result() for task in failed]
            await asyncio.sleep(0.01)
    core = next(process for _, process in supervisor.processes(child.path) if "EngineCore" in process.name)
    os.kill(core.pid, signal.SIGKILL)
    read = await asyncio.gather(*tasks)
    remove()
    plain = await asyncio.gather(
        *(_plain(pool, row, killed) for row, (_, killed) in zip(ROWS, read, strict=True))
    )
    return {
        row.name: Read(row, chunks, killed, fault_free)
        for row, (chunks, killed), fault_free in zip(ROWS, read, plain, strict=True)
    }


@pytest.mark.parametrize("name", [row.name for row in ROWS])
async def test_a_stream_killed_in_the_middle_is_the_one_without_a_fault(
    reads: dict[str, Read], name: str
) -> None:
    read = reads[name]
    for killed, plain in zip(read.killed.samples, read.plain.samples, strict=True):
        assert killed.token_ids == plain.token_ids
        assert killed.text == plain.text
        assert (killed.finish_reason, killed.stop_reason) == (plain.finish_reason, plain.stop_reason)
        assert killed.divergences == ()


@pytest.mark.parametrize("name", [row.name for row in ROWS])
async def test_what_is_read_chunk_by_chunk_is_the_whole_without_gap_or_repetition(
    reads: dict[str, Read], name: str
) -> None:
    read = reads[name]
    for index, plain in enumerate(read.plain.samples):
        mine = [chunk for chunk in read.chunks if chunk.index == index]
        assert tuple(token for chunk in mine for token in chunk.token_ids) == plain.token_ids
        assert "".join(chunk.text for chunk in mine) == plain.text
        assert [chunk.finish_reason for chunk in mine if chunk.finish_reason] == [plain.finish_reason]


@pytest.mark.parametrize("name", [row.name for row in [*PREFIX, *AGAIN]])
async def test_the_seam_lies_in_the_middle_of_each_stream(reads: dict[str, Read], name: str) -> None:
    read = reads[name]
    before = sum(
        len(chunk.token_ids) for chunk in read.chunks if chunk.incarnation == read.chunks[0].incarnation
    )
    assert 0 < before < sum(len(sample.token_ids) for sample in read.plain.samples)
    assert all(sample.attempts == 2 for sample in read.killed.samples)


@pytest.mark.parametrize("name", [row.name for row in ROWS])
async def test_usage_counts_the_prompt_once_and_each_token_once(reads: dict[str, Read], name: str) -> None:
    read = reads[name]
    assert read.killed.usage == read.plain.usage
    assert read.killed.usage.completion_tokens == sum(len(sample.token_ids) for sample in read.plain.samples)


@pytest.mark.parametrize(
    "name", ["greedy with logprobs", "greedy with prompt_logprobs", "sampled with logprobs"]
)
async def test_log_probabilities_are_those_without_a_fault(reads: dict[str, Read], name: str) -> None:
    killed, plain = reads[name].killed, reads[name].plain
    assert killed.samples[0].logprobs is not None
    for mine, theirs in zip(killed.samples[0].logprobs, plain.samples[0].logprobs or (), strict=True):
        assert [entry.token_id for entry in mine] == [entry.token_id for entry in theirs]
        assert [entry.logprob for entry in mine] == pytest.approx(
            [entry.logprob for entry in theirs], abs=1e-3
        )
    assert killed.cumulative_logprob == pytest.approx(plain.cumulative_logprob, abs=1e-2)
    assert (killed.prompt_logprobs is None) == (plain.prompt_logprobs is None)
    if killed.prompt_logprobs is not None:
        assert len(killed.prompt_logprobs) == len(plain.prompt_logprobs or ()) == len(PROMPT)


async def test_a_sampled_request_without_a_seed_is_given_one(reads: dict[str, Read]) -> None:
    assert reads["sampled without a seed"].killed.samples[0].seed is not None
    first, second = reads["n=2 without a seed"].killed.samples
    assert first.seed is not None
    assert second.seed == first.seed + 1
    assert first.token_ids != second.token_ids


async def test_structured_output_is_still_valid(reads: dict[str, Read]) -> None:
    assert json.loads(reads["json"].killed.text).keys() == {"name"}
    assert re.fullmatch("[a-d]{30}", reads["regex"].killed.text)
    assert reads["choice"].killed.text == "never let a request go"


async def test_a_stop_string_across_the_seam_still_stops(reads: dict[str, Read]) -> None:
    read = reads["stop string across the seam"]
    assert read.killed.text == "say it and "
    assert read.killed.samples[0].stop_reason == "stop here"
    before = "".join(c.text for c in read.chunks if c.incarnation == read.chunks[0].incarnation)
    assert "say it and ".startswith(before)


async def test_a_character_split_by_the_seam_comes_out_whole(reads: dict[str, Read]) -> None:
    for cut in (7, 8, 9):
        read = reads[f"character split by the seam after {cut} tokens"]
        assert len(read.killed.token_ids) == 40
        assert set(read.killed.token_ids) <= set(EUROS)
        assert read.killed.text == read.plain.text


async def test_beam_search_is_refused_with_an_error_that_says_why(supervisor: rv.Supervisor) -> None:
    with pytest.raises(rv.RequestError, match="beam"):
        await supervisor["llm"].generate(PROMPT, {"use_beam_search": True, "n": 2}).result()


async def test_a_wrong_parameter_goes_back_to_its_caller_and_the_engine_lives(
    supervisor: rv.Supervisor,
) -> None:
    pool = supervisor["llm"]
    before = (await supervisor.which_children("llm"))[0].incarnation
    with pytest.raises(rv.RequestError, match="temperature"):
        await pool.generate(PROMPT, {"temperature": -1.0}).result()
    with pytest.raises(rv.RequestError, match="no_such_parameter"):
        await pool.generate(PROMPT, {"no_such_parameter": 1}).result()
    assert (await pool.generate(PROMPT, GREEDY).result()).finish_reason
    assert (await supervisor.which_children("llm"))[0].incarnation == before


async def test_leaving_the_loop_aborts_in_the_engine_within_a_second(supervisor: rv.Supervisor) -> None:
    pool = supervisor["llm"]
    tokens = pool.stats().tokens
    async for chunk in pool.generate(PROMPT, {"temperature": 0.0, "max_tokens": 200, "ignore_eos": True}):
        if chunk.token_ids:
            break
    async with asyncio.timeout(20):  # a second on an idle machine
        while pool.stats().in_flight:  # noqa: ASYNC110 - a pool has no event for its end
            await asyncio.sleep(0.01)
    # The abort has reached the engine before its 200 tokens.
    assert pool.stats().tokens - tokens < 200


async def test_generate_many_answers_in_the_order_of_its_prompts(supervisor: rv.Supervisor) -> None:
    pool = supervisor["llm"]
    prompts = [f"{PROMPT} number {number}" for number in range(40)]
    completions = await pool.generate_many(prompts, {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True})
    alone = await pool.generate(
        prompts[17], {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    ).result()
    assert [len(completion.token_ids) for completion in completions] == [8] * 40
    assert completions[17].token_ids == alone.token_ids


# --- the last test, since any later one would wait for another engine ---------------------------------


async def test_engine_core_and_worker_are_gone_within_seconds_of_their_hosts_sigkill(
    supervisor: rv.Supervisor,
) -> None:
    watch = supervisor.watch()
    processes = {
        process.name.rpartition("::")[2] if role == "engine" else role: process
        for role, process in supervisor.processes("llm/1")
    }
    assert processes.keys() == {"host", "EngineCore", "Worker"}
    os.kill(processes["Worker"].pid, signal.SIGSTOP)
    began = time.monotonic()
    os.kill(processes["host"].pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while any(alive(process) for process in processes.values()):  # noqa: ASYNC110 - the processes are no children of this one
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < 20  # on a busy machine
        fault = await anext(record.fault async for record in watch if isinstance(record, r.FaultSeen))
    assert (fault.child, fault.fault_class) == ("llm/1", rv.FaultClass.FATAL)
