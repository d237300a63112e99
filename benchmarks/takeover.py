"""Measures the takeover by a warm spare: the time from SIGKILL of EngineCore to the next token.

The pool has one engine and one spare. The killed engine returns as the spare, and the next kill hits the
other one. It is measured with one stream and with many.
"""

from __future__ import annotations

from functools import partial

import anyio
import click

from benchmarks.figures import Report, Target, announced
from benchmarks.kills import kill_mid_stream
from benchmarks.tree import engine_arguments, pool_tree

__all__ = ["main", "measure"]

ONE_MS, MANY_MS = 120.0, 200.0
ENGINES = ("llm/1", "llm/2")


async def measure(engine: str, runs: int, streams: int = 8, model: str = "") -> Report:
    """Kill the serving engine, with one stream and with many, so that the spare takes over."""
    report = Report("takeover", engine)
    decided: list[float] = []
    next_tokens: dict[int, list[float]] = {1: [], streams: []}
    last: list[float] = []
    async with pool_tree(engine, engine_arguments(engine, model=model, pace=100.0), standby=1) as tree:
        serves, spare = ENGINES
        for number in (1, streams):
            for _ in range(runs):
                kill = await kill_mid_stream(tree, serves, number)
                what = f"next token, {number} streams" if number > 1 else "next token, one stream"
                next_tokens[number].append(announced(what, kill.first * 1000.0, "ms"))
                decided.append((kill.decided - kill.killed) * 1000.0)
                if number > 1:
                    last.append(kill.last * 1000.0)
                await tree.reached(serves, "ALIVE.STANDBY", kill.decided)
                serves, spare = spare, serves
    report.add("kill to decision", decided, "ms")
    for number, limit in ((1, ONE_MS), (streams, MANY_MS)):
        with_ = "one stream" if number == 1 else f"{number} streams"
        row = report.add(f"{with_}: kill to next token", next_tokens[number], "ms")
        if row is not None:
            report.targets.append(Target(f"{with_}, median, ms", row.median, limit))
    report.add(f"{streams} streams: kill until all continue", last, "ms")
    return report


@click.command("takeover", help=__doc__)
@click.option("--engine", type=click.Choice(["sim", "vllm"]), default="sim", show_default=True)
@click.option(
    "--runs", type=click.IntRange(1), default=5, show_default=True, help="With each number of streams."
)
@click.option("--streams", type=click.IntRange(2), default=8, show_default=True)
@click.option("--model", default="", help="A model for vLLM instead of the tests' tiny one.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON in the last line.")
def main(engine: str, runs: int, streams: int, model: str, *, as_json: bool) -> None:
    """Measure and print."""
    report: Report = anyio.run(partial(measure, engine, runs, streams, model))
    report.show(as_json=as_json)
