"""Measures tokens per second with eight streams: through the pool, in process, and with Ray streams.

The two peers share another engine, in an actor: its streams are read in its own process, without rayvisor or
Ray in between (for vLLM with ``AsyncLLM.generate``), and by the driver, with one Ray stream per request. The
three alternate, round by round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import click

from benchmarks.figures import Report, Target, announced
from benchmarks.tree import PROMPTS, Tree, engine_arguments, pool_tree, stream_params

__all__ = ["main", "measure"]

OF_IN_PROCESS, OF_RAY_STREAMS = 0.85, 2.0
_START_SECONDS = 300.0


async def measure(engine: str, runs: int, streams: int, tokens: int, model: str = "") -> Report:
    """Alternate rounds of the three, after a warm-up round of each."""
    report = Report("throughput", engine, notes={"streams": streams, "tokens": tokens})
    arguments = engine_arguments(engine, model=model, pace=0.0)
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(streams)]
    params = stream_params(tokens)
    rates: dict[str, list[float]] = {"pool": [], "in process": [], "Ray": []}
    async with pool_tree(engine, arguments) as tree:
        peer = await _peer(engine, arguments)
        try:
            for number in range(runs + 1):
                for name, run in (
                    ("pool", partial(_through_pool, tree)),
                    ("in process", partial(_in_process, peer)),
                    ("Ray", partial(_ray_streams, peer)),
                ):
                    seconds = await run(prompts, params)
                    rate = announced(name, streams * tokens / seconds, "tokens/s")
                    if number:
                        rates[name].append(rate)
        finally:
            await _end(peer)
    pool = report.add("through the pool", rates["pool"], "tokens/s")
    local = report.add("read in the engine's process", rates["in process"], "tokens/s", peer=True)
    ray = report.add("one Ray stream a request", rates["Ray"], "tokens/s", peer=True)
    if pool is not None and local is not None and ray is not None and engine == "vllm":
        # The simulated engine merges tokens that are not read immediately, so the ratios mean nothing there.
        report.targets += [
            Target("pool / in process", pool.median / local.median, OF_IN_PROCESS, at_most=False),
            Target(
                "pool / one Ray stream a request", pool.median / ray.median, OF_RAY_STREAMS, at_most=False
            ),
        ]
    return report


async def _timed(*streams: Any) -> float:
    began = time.monotonic()
    await asyncio.gather(*streams)
    return time.monotonic() - began


async def _through_pool(tree: Tree, prompts: Sequence[str], params: Mapping[str, Any]) -> float:
    async def read(prompt: str) -> None:
        got = 0
        async with tree.pool.generate(prompt, params) as stream:
            async for chunk in stream:
                got += len(chunk.token_ids)
        _check(got, params)

    return await _timed(*(read(prompt) for prompt in prompts))


async def _in_process(peer: Any, prompts: Sequence[str], params: Mapping[str, Any]) -> float:
    seconds: float = await peer.run.remote(list(prompts), dict(params))
    return seconds


async def _ray_streams(peer: Any, prompts: Sequence[str], params: Mapping[str, Any]) -> float:
    async def read(prompt: str) -> None:
        got = 0
        async for ref in peer.stream.options(num_returns="streaming").remote(prompt, dict(params)):
            ids, _text, _finish = await ref
            got += len(ids)
        _check(got, params)

    return await _timed(*(read(prompt) for prompt in prompts))


def _check(got: int, params: Mapping[str, Any]) -> None:
    if got != params["max_tokens"]:
        raise RuntimeError(f"received {got} tokens instead of {params['max_tokens']}")


async def _peer(engine: str, arguments: Mapping[str, Any]) -> Any:
    import ray

    remote: Any = ray.remote
    actor = remote(num_cpus=0, max_concurrency=1000)(_Peer)
    peer = await anyio.to_thread.run_sync(partial(actor.remote, engine, dict(arguments)))
    with anyio.fail_after(_START_SECONDS):
        await peer.start.remote()
    return peer


async def _end(peer: Any) -> None:
    import ray

    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(30.0):
            await peer.stop.remote()
        await anyio.to_thread.run_sync(ray.kill, peer)


class _Peer:
    """An engine in an actor, without rayvisor's host."""

    def __init__(self, engine: str, arguments: Mapping[str, Any]) -> None:
        self._engine = engine
        self._arguments = dict(arguments)
        self._live: Any = None
        self._number = 0

    async def start(self) -> None:
        if self._engine == "vllm":
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            def make() -> Any:
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))

            self._live = await asyncio.to_thread(make)
            return
        from rayvisor._backends.host.engine import load_engine

        self._live = load_engine(self._engine, 1, self._arguments)
        await self._live.start(lambda _phase, _detail: None)

    async def stop(self) -> None:
        if self._engine == "vllm":
            await asyncio.to_thread(self._live.shutdown)
        else:
            await self._live.stop(0.0)

    async def run(self, prompts: Sequence[str], params: Mapping[str, Any]) -> float:
        async def read(prompt: str) -> None:
            got = 0
            async for ids, _text, _finish in self.stream(prompt, params):
                got += len(ids)
            _check(got, params)

        return await _timed(*(read(prompt) for prompt in prompts))

    async def stream(
        self, prompt: str, params: Mapping[str, Any]
    ) -> AsyncIterator[tuple[tuple[int, ...], str, str | None]]:
        self._number += 1
        name = f"peer-{self._number}"
        if self._engine == "vllm":
            from vllm import SamplingParams
            from vllm.sampling_params import RequestOutputKind

            wanted = SamplingParams(**params, output_kind=RequestOutputKind.DELTA)
            async for output in self._live.generate(prompt, wanted, name):
                sample = output.outputs[0]
                yield tuple(sample.token_ids), sample.text, sample.finish_reason
            return
        from rayvisor._core.protocol.wire import GenerateCommand

        async for chunk in self._live.generate(GenerateCommand(name, 1, prompt, dict(params))):
            yield chunk.token_ids, chunk.text, chunk.finish_reason


@click.command("throughput", help=__doc__)
@click.option("--engine", type=click.Choice(["sim", "vllm"]), default="sim", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Rounds of each.")
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=400, show_default=True, help="Of each stream.")
@click.option("--model", default="", help="A model for vLLM instead of the tests' tiny one.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON in the last line.")
def main(engine: str, runs: int, streams: int, tokens: int, model: str, *, as_json: bool) -> None:
    """Measure and print."""
    report: Report = anyio.run(partial(measure, engine, runs, streams, tokens, model))
    report.show(as_json=as_json)
