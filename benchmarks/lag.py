"""Measures how long the supervisor's event loop blocks while Ray's control store (GCS) is stopped.

Meanwhile the supervisor's actors are called, another one is started (which cannot come up before the store
continues), and a timer on the loop is late by the time that the loop was blocked. The same timer is also
measured without a fault.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import anyio
import click
import psutil

import rayvisor as rv
from benchmarks.figures import Report, Target, announced
from rayvisor import records as r

__all__ = ["main", "measure"]

LAG_MS = 50.0
TICK_SECONDS = 0.005


class Worker:
    """An actor."""

    def pid(self) -> int:
        """Return the pid of its process."""
        return os.getpid()


def _gcs() -> psutil.Process:
    """Return the control store of the Ray that this process is connected to."""
    import ray

    port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "gcs_server":
            listening = [each for each in process.net_connections("inet") if each.status == "LISTEN"]
            if port in {each.laddr.port for each in listening}:
                return process
    raise click.ClickException("the GCS does not run on this machine")


async def _lags(sup: rv.Supervisor, seconds: float) -> list[float]:
    """Return the delays of a timer, in milliseconds, while actors are called continuously."""
    lags: list[float] = []
    end = time.monotonic() + seconds
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            while time.monotonic() < end:
                await sup["own"].options(timeout=60).call("pid")
                await sup["theirs"].options(timeout=60).call("pid")

        tasks.start_soon(call)
        while (before := time.monotonic()) < end:
            await anyio.sleep(TICK_SECONDS)
            lags.append((time.monotonic() - before - TICK_SECONDS) * 1000.0)
    return lags


async def measure(runs: int, seconds: float) -> Report:
    """Stop the store ``runs`` times for ``seconds`` seconds."""
    report = Report("lag", "no")
    quiet: list[float] = []
    stopped: list[float] = []
    children = [
        rv.actor("own", Worker, num_cpus=0, probe="pid"),
        rv.adopt("theirs", make=_theirs, probe="pid", on_end="kill"),
    ]
    supervisor = rv.Supervisor(rv.SupervisorSpec(children=children, intensity=0))
    watch = supervisor.watch()
    async with supervisor as sup:
        gcs = _gcs()
        for run in range(runs):
            quiet.append(announced("longest lag", max(await _lags(sup, seconds)), "ms"))
            async with anyio.create_task_group() as tasks:
                gcs.send_signal(signal.SIGSTOP)
                try:
                    tasks.start_soon(sup.start_child, rv.actor(f"late-{run}", Worker, num_cpus=0))
                    longest = max(await _lags(sup, seconds))
                finally:
                    gcs.send_signal(signal.SIGCONT)
            stopped.append(announced("longest lag, GCS stopped", longest, "ms"))
    false_deaths = [x async for x in watch if isinstance(x, r.FaultSeen)]
    report.notes["false deaths"] = len(false_deaths)
    row = report.add("GCS stopped: longest lag of the loop", stopped, "ms")
    report.add("no fault: longest lag of the loop", quiet, "ms")
    if row is not None:
        report.targets.append(Target("longest lag while the GCS is stopped, ms", max(row.values), LAG_MS))
    report.targets.append(Target("actors declared dead", len(false_deaths), 0))
    return report


def _theirs() -> Any:
    import ray

    remote: Any = ray.remote
    return remote(Worker).options(num_cpus=0, max_restarts=-1).remote()


@click.command("lag", help=__doc__)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True, help="Of each stop.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON in the last line.")
def main(runs: int, seconds: float, *, as_json: bool) -> None:
    """Measure and print."""
    report: Report = anyio.run(measure, runs, seconds)
    report.show(as_json=as_json)
