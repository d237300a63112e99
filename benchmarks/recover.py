"""Measures recovery: the time from SIGKILL of EngineCore to the first new token of a stream it served.

It is measured with one engine, whose next incarnation has to start (beside the engine's own cold start in the
same run), and with a second engine in the pool, to which the streams move immediately.
"""

from __future__ import annotations

from functools import partial

import anyio
import click

from benchmarks.figures import Report, Target, announced
from benchmarks.kills import kill_mid_stream
from benchmarks.tree import engine_arguments, pool_tree

__all__ = ["main", "measure"]

COLD_STARTS, MOVE_MS = 1.1, 150.0


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
                kill = await kill_mid_stream(tree, "llm/1", streams)
                alone.append(announced("first new token", kill.first, "s"))
    if move_runs:
        async with pool_tree(engine, arguments, size=2) as tree:
            for _ in range(move_runs):
                kill = await kill_mid_stream(tree, "llm/1", streams)
                moved.append(announced("first new token", kill.first * 1000.0, "ms"))
                last.append(kill.last * 1000.0)
                await tree.reached("llm/1", "ALIVE.SERVING", kill.decided)
    started = report.add("cold start of the engine itself", cold, "s", peer=True)
    restarted = report.add("one engine: kill to first new token", alone, "s")
    if started is not None and restarted is not None and engine == "vllm":
        # The simulated engine starts in no time, so there is nothing to compare with.
        ratio = restarted.median / started.median
        report.targets.append(Target("kill to first new token / cold start", ratio, COLD_STARTS))
    row = report.add("second engine: kill to first new token", moved, "ms")
    if row is not None:
        report.targets.append(Target("with a second engine, median, ms", row.median, MOVE_MS))
    report.add(f"second engine: all of its streams continue ({streams} total)", last, "ms")
    return report


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
