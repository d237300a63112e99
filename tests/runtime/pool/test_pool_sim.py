"""The pool over real processes: a simulated engine behind its host, its core ended by SIGKILL mid-stream."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from rayvisor._backends.host.host import EngineHost
from rayvisor._core.protocol.wire import EngineInfo, GenerateCommand, ProcessId, Terminated
from rayvisor._runtime.pool.pool import EnginePool
from rayvisor._runtime.pool.runtime import PoolRuntime
from rayvisor.pool import Completion
from tests.core.requests.oracle import fault_of

SIM: Mapping[str, Any] = {"tokens_per_second": 300.0, "seed": 4}
PROMPTS = ("Once upon a time", "Ännchen", "It was", "the best of times")

ROWS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy-logprobs": {"temperature": 0, "logprobs": 2, "prompt_logprobs": 1},
    "greedy-bias": {"temperature": 0, "logit_bias": {101: -100.0}},
    "greedy-stop-token": {"temperature": 0, "stop_token_ids": [32]},
    "seeded": {"temperature": 1.0, "seed": 11},
    "presence": {"temperature": 0, "presence_penalty": 1.0},
    "frequency": {"temperature": 0.8, "seed": 3, "frequency_penalty": 1.0},
    "repetition": {"temperature": 0, "repetition_penalty": 1.3},
    "stop-string": {"temperature": 0, "stop": ["e t", "qq"]},
    "min-tokens": {"temperature": 0, "min_tokens": 40},
    "samples": {"temperature": 1.0, "seed": 5, "n": 2},
}


CHILD = "sim/1"


class Host:
    """One host; its engine is started again when it has ended. What a runtime does, in short."""

    def __init__(self, logs: Path) -> None:
        self.host = EngineHost(CHILD, 1, "sim", str(logs))
        self.incarnation = 0
        self.processes: tuple[ProcessId, ...] = ()
        self.pool = PoolRuntime(self, rng=Random(2))
        self.kill_at = math.inf

    async def submit(self, child: str, incarnation: int, orders: Sequence[GenerateCommand], /) -> None:
        del child
        await self.host.submit(incarnation, orders)

    async def abort(self, child: str, incarnation: int, attempts: Sequence[tuple[str, int]], /) -> None:
        del child, incarnation
        await self.host.abort(attempts)

    async def flow(self, child: str, incarnation: int, request: str, attempt: int, *, is_open: bool) -> None:
        del child, incarnation
        await self.host.flow(request, attempt, is_open=is_open)

    async def start(self) -> None:
        self.incarnation += 1
        info = await self.host.ensure_started(self.incarnation, dict(SIM), 90.0)
        assert isinstance(info, EngineInfo)
        self.processes = info.processes
        self.pool.engine_up(CHILD, self.incarnation, info)

    async def listen(self) -> None:
        async for items in self.host.stream():
            self.pool.items(CHILD, self.incarnation, items)
            if self.pool.stats().tokens >= self.kill_at:
                self.kill_at = math.inf
                core = next(process for process in self.processes if "EngineCore" in process.name)
                os.kill(core.pid, signal.SIGKILL)
            for item in items:
                if isinstance(item, Terminated) and item.incarnation == self.incarnation:
                    self.pool.engine_down(CHILD, self.incarnation, fault_of(CHILD, self.incarnation))
                    await self.host.stop_engine(self.incarnation, 0.0)
                    await self.start()


@asynccontextmanager
async def running(logs: Path) -> AsyncIterator[Host]:
    host = Host(logs)
    with anyio.fail_after(240):
        async with host.pool, anyio.create_task_group() as tasks:
            await host.start()
            tasks.start_soon(host.listen)
            try:
                yield host
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await host.host.stop_engine(host.incarnation, 0.0)


def same(one: Completion, other: Completion) -> None:
    assert [sample.token_ids for sample in one.samples] == [sample.token_ids for sample in other.samples]
    assert [sample.text for sample in one.samples] == [sample.text for sample in other.samples]
    assert [(s.finish_reason, s.stop_reason) for s in one.samples] == [
        (s.finish_reason, s.stop_reason) for s in other.samples
    ]
    assert [sample.cumulative_logprob for sample in one.samples] == pytest.approx(
        [sample.cumulative_logprob for sample in other.samples]
    )
    assert one.prompt_logprobs == other.prompt_logprobs
    assert one.usage == other.usage
    assert all(sample.divergences == () for sample in one.samples)


async def test_every_row_of_the_table_outlives_a_kill_of_the_core(tmp_path: Path) -> None:
    async with running(tmp_path) as host:
        pool = EnginePool(host.pool)
        jobs = [(prompt, {"max_tokens": 60, **row}) for row in ROWS.values() for prompt in PROMPTS]
        quiet = await pool.generate_many([job[0] for job in jobs], [job[1] for job in jobs])
        assert pool.stats().moved == 0
        for share in (0.2, 0.7):
            before = pool.stats()
            host.kill_at = before.tokens + share * sum(each.usage.completion_tokens for each in quiet)
            streams = [pool.generate(prompt, params) for prompt, params in jobs]
            read = [[chunk async for chunk in stream] for stream in streams]
            assert pool.stats().moved > before.moved
            for stream, chunks, expected in zip(streams, read, quiet, strict=True):
                assert stream.completion is not None
                same(stream.completion, expected)
                assert "".join(chunk.text for chunk in chunks if chunk.index == 0) == expected.text
        assert host.incarnation == 3
