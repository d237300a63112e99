"""How long the readers wait: from SIGKILL of EngineCore to the first new token of a stream it served.

Twice: with one engine, where its next incarnation has to come up, beside that engine's own cold start in
the same run; and with a second engine in the pool, to which the streams move at once.
"""

from __future__ import annotations

import time
from functools import partial

import anyio
import click

from benchmarks.figures import Report, Target, taken
from benchmarks.tree import PROMPTS, Tree, engine_arguments, pool_tree, stream_params

__all__ = ["main", "measure"]

COLD_STARTS, MOVE_MS = 1.1, 150.0
TOKENS = 300
_ENOUGH = 10
"""So many tokens a stream has got before its engine is killed."""


async def measure(engine: str, runs: int, move_runs: int, streams: int = 8, model: str = "") -> Report:
    """Kill engines in the middle of streams, with and without another one in the pool."""
    report = Report("recover", engine)
    arguments = engine_arguments(engine, model=model, pace=100.0)
    cold: list[float] = []
    alone: list[float] = []
    moved: list[float] = []
    last: list[float] = []
    if runs:
        async with pool_tree(engine, arguments) as tree:
            cold.append(tree.cold_start("llm/1"))
            for _ in range(runs):
                first, _, _ = await _once(tree, streams)
                alone.append(first)
    if move_runs:
        async with pool_tree(engine, arguments, size=2) as tree:
            for _ in range(move_runs):
                first, slowest, decided = await _once(tree, streams)
                moved.append(first * 1000.0)
                last.append(slowest * 1000.0)
                await tree.serving("llm/1", decided)
    started = report.add("cold start of the engine itself", cold, "s", peer=True)
    restarted = report.add("one engine: kill to first new token", alone, "s")
    if started is not None and restarted is not None and engine == "vllm":
        # The simulated engine's start takes no time, so there is nothing to compare with.
        ratio = restarted.median / started.median
        report.targets.append(Target("kill to first new token / cold start", ratio, COLD_STARTS))
    row = report.add("second engine: kill to first new token", moved, "ms")
    if row is not None:
        report.targets.append(Target("with a second engine, median, ms", row.median, MOVE_MS))
    report.add(f"second engine: all of its streams go on ({streams} in all)", last, "ms")
    return report


async def _once(tree: Tree, streams: int) -> tuple[float, float, float]:
    """Kill once; seconds to the first and to the last of its streams' new tokens, when it was decided."""
    ready: list[str] = []
    enough = anyio.Event()
    killed = 0.0
    went_on: list[float] = []

    async def read(prompt: str) -> None:
        async with tree.pool.generate(prompt, stream_params(TOKENS)) as stream:
            got, engine = 0, ("", 0)
            async for chunk in stream:
                now = time.monotonic()
                origin = (chunk.child, chunk.incarnation)
                if not got:
                    engine = origin
                elif origin != engine and chunk.token_ids:
                    went_on.append(now - killed)
                    return
                elif killed and engine[0] != "llm/1":
                    return  # on the other engine: nothing happens to it
                if got < _ENOUGH <= got + len(chunk.token_ids):
                    ready.append(chunk.child)
                    if len(ready) == streams:
                        enough.set()
                got += len(chunk.token_ids)

    async with anyio.create_task_group() as readers:
        for number in range(streams):
            readers.start_soon(read, f"{PROMPTS[number % len(PROMPTS)]}{number}")
        with anyio.fail_after(60):
            await enough.wait()
        killed = tree.kill("llm/1", "EngineCore")
        decided = await tree.decided("llm/1", killed)
    if not went_on:
        raise RuntimeError("no stream was on the engine that was killed")
    return taken("first new token", min(went_on), "s"), max(went_on), decided


@click.command("recover", help=__doc__)
@click.option("--engine", type=click.Choice(["sim", "vllm"]), default="sim", show_default=True)
@click.option("--runs", type=click.IntRange(0), default=None, help="With one engine; 5, with vLLM 3.")
@click.option("--move-runs", type=click.IntRange(0), default=None, help="With two engines; 10, with vLLM 5.")
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True)
@click.option("--model", default="", help="A model for vLLM instead of the tests' tiny one.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON in the last line.")
def main(
    engine: str, runs: int | None, move_runs: int | None, streams: int, model: str, *, as_json: bool
) -> None:
    """Measure and print."""
    real = engine == "vllm"
    runs = (3 if real else 5) if runs is None else runs
    move_runs = (5 if real else 10) if move_runs is None else move_runs
    report: Report = anyio.run(partial(measure, engine, runs, move_runs, streams, model))
    report.show(as_json=as_json)
