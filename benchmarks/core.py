"""Measures the pure core: restarts per second, and bytes per child, from 1 child to 1,000,000.

A child crashes, restarts and comes up: three events without any process. Any cost that grows with the number
of children shows here.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from random import Random

import click

from benchmarks.figures import Report, Target
from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.core import Core
from rayvisor.specs import ChildSpec, Strategy, SupervisorSpec
from rayvisor.testing import BOOM, NOTHING

__all__ = ["main"]

SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
RESTARTS = 20_000
MEASURED = 10_000
"""Maximum number of children over which memory is averaged, since tracing every allocation is slow."""


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
@click.option("--largest", default=SIZES[-1], show_default=True, help="No tree with more children than this.")
@click.option("--restarts", default=RESTARTS, show_default=True, help="How many restarts of each tree.")
@click.option("--repeat", default=3, show_default=True, help="How often each tree is measured.")
def main(*, as_json: bool, largest: int, restarts: int, repeat: int) -> None:
    """Measure every size and print the results."""
    report = Report("core", "no")
    slowest = math.inf
    for size in SIZES:
        if size <= largest:
            core = grown(size)
            rates = [restarts_per_second(core, size, restarts) for _ in range(repeat)]
            report.add(f"{size:,} children", rates, "restarts/s")
            slowest = min(slowest, statistics.median(rates))
    used = bytes_per_child(min(MEASURED, largest))
    report.add("memory of a child", [used], "bytes")
    report.targets += [
        Target("restarts/s, whatever the size", slowest, 25_000.0, at_most=False),
        Target("bytes a child", used, 1536.0),
    ]
    report.show(as_json=as_json)


def restarts_per_second(core: Core, size: int, restarts: int) -> float:
    """Return the restarts per second of processor time of a one_for_one supervisor's children."""
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        for number in range(restarts):
            path = str(number * 7919 % size)
            now = core.now + 0.001
            child = core.children[path]
            core.handle(m.Exited(path, child.incarnation, BOOM), now)
            core.handle(m.Started(path, child.incarnation), now)
        return restarts / (time.process_time() - began)
    finally:
        gc.enable()


def grown(size: int) -> Core:
    """Start a tree with this many children under one supervisor."""
    core = Core(SupervisorSpec(intensity=10**9, period=1.0, children=list(specs(size))), Random(0))
    todo = core.handle(m.Boot(), 0.0)
    while todo:
        starts = [effect for effect in todo if isinstance(effect, m.Start)]
        todo = [
            effect
            for start in starts
            for effect in core.handle(m.Started(start.child, start.incarnation), 0.0)
        ]
    return core


def specs(size: int) -> Iterator[ChildSpec]:
    """Yield the specs of a flat tree."""
    for number in range(size):
        yield ChildSpec(id=str(number), start=NOTHING)


def bytes_per_child(size: int) -> float:
    """Return the memory of a child, including its spec, its id and its state."""
    children = SupervisorSpec(
        strategy=Strategy.ONE_FOR_ONE, intensity=10**9, period=1.0, children=list(specs(1))
    )
    Core(children, Random(0)).handle(m.Boot(), 0.0)  # exclude what is allocated only once
    gc.collect()
    tracemalloc.start()
    try:
        core = grown(size)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return used / len(core.children)
