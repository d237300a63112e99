"""Measures detection: the time from SIGKILL to the supervisor's decision.

For comparison, on the same Ray: Ray's own restart of an actor (the time until its caller gets an answer or
ActorUnavailableError), the pending call on an actor that Ray does not restart, and, for vLLM, the
EngineDeadError of an ``AsyncLLM`` in the same process.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import click

from benchmarks.figures import Report, Target, announced
from benchmarks.peers import actor_death_seen, engine_death_seen
from benchmarks.tree import PROMPTS, Tree, engine_arguments, pool_tree, stream_params

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["main", "measure"]

CHILD = "llm/1"
ENGINE_MS, HOST_MS = 100.0, 30.0
VICTIMS = {"engine": "EngineCore", "host": "host"}


async def measure(
    engine: str, runs: int, peer_runs: int, model: str = "", victims: tuple[str, ...] = ()
) -> Report:
    """Kill engines and hosts in the middle of a stream, each ``runs`` times."""
    report = Report("detect", engine)
    arguments = engine_arguments(engine, model=model)
    seen: dict[str, list[float]] = {}
    peers: dict[str, list[float]] = {}
    async with pool_tree(engine, arguments) as tree:
        for victim in victims or VICTIMS:
            seen[victim] = [await _once(tree, VICTIMS[victim]) for _ in range(runs)]
        if peer_runs:
            for name in ("no restart", "restart", "restart and retry"):
                peers[name] = [await actor_death_seen(name) for _ in range(peer_runs)]
    if engine == "vllm" and peer_runs:
        peers["AsyncLLM"] = await engine_death_seen(arguments, peer_runs)
    names = {
        "engine": "EngineCore killed: decision",
        "host": "host actor killed: decision",
    }
    limits = {"engine": ENGINE_MS, "host": HOST_MS}
    for victim, values in seen.items():
        row = report.add(names[victim], values, "ms")
        if row is not None:
            report.targets.append(Target(f"{row.what}, median, ms", row.median, limits[victim]))
    report.add("AsyncLLM in process: EngineDeadError", peers.get("AsyncLLM", ()), "ms", peer=True)
    report.add("Ray, max_restarts=0: ActorDiedError", peers.get("no restart", ()), "ms", peer=True)
    report.add("Ray restarts: ActorUnavailableError", peers.get("restart", ()), "ms", peer=True)
    report.add("Ray restarts and retries: answer", peers.get("restart and retry", ()), "ms", peer=True)
    return report


async def _once(tree: Tree, victim: str) -> float:
    async with tree.pool.generate(PROMPTS[0], stream_params(400)) as stream:
        await anext(stream)
        killed = tree.kill(CHILD, victim)
        decided = await tree.decided(CHILD, killed)
    await tree.reached(CHILD, "ALIVE.SERVING", decided)
    return announced(f"{victim} killed", (decided - killed) * 1000.0, "ms")


@click.command("detect", help=__doc__)
@click.option("--engine", type=click.Choice(["sim", "vllm"]), default="sim", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=None, help="Kills of each kind; 10, with vLLM 3.")
@click.option("--peer-runs", type=click.IntRange(0), default=None, help="Of each peer; 5, with vLLM 1.")
@click.option("--victim", type=click.Choice(list(VICTIMS)), multiple=True, help="Only this kind.")
@click.option("--model", default="", help="A model for vLLM instead of the tests' tiny one.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON in the last line.")
def main(
    engine: str,
    runs: int | None,
    peer_runs: int | None,
    victim: tuple[str, ...],
    model: str,
    *,
    as_json: bool,
) -> None:
    """Measure and print."""
    real = engine == "vllm"
    runs = runs or (3 if real else 10)
    peer_runs = (1 if real else 5) if peer_runs is None else peer_runs
    work: Callable[[], Awaitable[Any]] = partial(measure, engine, runs, peer_runs, model, victim)
    report: Report = anyio.run(work)
    report.show(as_json=as_json)
