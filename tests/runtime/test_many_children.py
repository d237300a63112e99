"""Removing one child, or judging one failed start, costs as much with 20,000 children as with 1,000."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from rayvisor._core.supervision import messages as m
from rayvisor._runtime.broadcaster import RecordBroadcaster
from rayvisor._runtime.children.actors import ActorBackend
from rayvisor._runtime.incarnations import IncarnationManager
from rayvisor._runtime.lifecycle import LifecycleMachine
from rayvisor._runtime.pool.registry import PoolRegistry
from rayvisor._runtime.reporting import EventReporter
from rayvisor.specs import CoroutineStart, engine_pool
from statecharts.lifecycles import CHARTS

FEW, MANY, TIMES = 1_000, 20_000, 200
Event = Callable[[str], object]


def cost(children: int, event: Event) -> float:
    """Seconds of the event for each of some children in the middle; the best of what a busy machine gives."""
    best, first = float("inf"), children // 2
    for batch in range(4):
        began = time.perf_counter()
        for number in range(TIMES // 4):
            event(f"w{first + batch * TIMES // 4 + number}")
        best = min(best, time.perf_counter() - began)
    return best


@asynccontextmanager
async def managers(children: int) -> AsyncIterator[IncarnationManager]:
    machines = {name: LifecycleMachine(CHARTS[name]) for name in ("actor", "engine")}
    async with anyio.create_task_group() as tasks:
        reporter = EventReporter(RecordBroadcaster(time.monotonic))
        manager = IncarnationManager(tasks, {}, machines, lambda _: None, reporter)
        initial = machines["actor"].table.initial
        for number in range(children):
            manager.changed(m.Changed(f"w{number}", 1, "start", initial, initial))
        yield manager
        tasks.cancel_scope.cancel()


async def removals(children: int) -> float:
    async with managers(children) as manager:
        seconds = cost(children, lambda path: manager.removed(m.Removed(path)))
        assert len(manager._records) == children - TIMES
    return seconds


async def failed_starts(children: int) -> float:
    async with managers(children) as manager:
        for number in range(children):
            record = manager._records[f"w{number}"]
            record.start = CoroutineStart(function=anyio.sleep_forever, args=([number],))
            if number < children // 2:
                manager._note_served(record)
        seconds = cost(children, lambda path: manager._has_served(manager._records[path]))
        assert len(manager._served_starts) == children // 2
    return seconds


async def pools(children: int) -> float:
    """Half of the supervisors are pools, half have stopped."""
    async with anyio.create_task_group() as tasks:
        registry = PoolRegistry(cast("Any", None), tasks, Random(1), lambda *_: None)
        runtime = cast("Any", SimpleNamespace(core=SimpleNamespace(supervisors={}, children={})))
        spec = engine_pool("llm", engine_args={}, engine="sim").start
        for number in range(children):
            if number % 2:
                runtime.core.supervisors[f"w{number}"] = SimpleNamespace(spec=spec)
            registry.observe(m.SupervisorChanged(f"w{number}", "starting"), runtime)
            registry.observe(m.SupervisorChanged(f"w{number}", "stopping"), runtime)
        assert len(registry._pools) == children // 2
        seconds = cost(children, lambda path: registry.observe(m.Removed(path), runtime))
        assert len(registry._pools) == (children - TIMES) // 2
        assert len(registry._stopping) == children - TIMES
        tasks.cancel_scope.cancel()
    return seconds


async def adoptions(children: int) -> float:
    backend = ActorBackend(cast("Any", None), cast("Any", None))
    let_go: list[int] = []
    for number in range(children):
        backend._adoptions[f"w{number}"] = cast(
            "Any", SimpleNamespace(let_go=lambda number=number: let_go.append(number))
        )
    seconds = cost(children, lambda path: backend.observe(m.Removed(path)))
    assert len(let_go) == TIMES
    return seconds


CASES: Mapping[str, Callable[[int], Any]] = {
    "removals": removals,
    "failed starts": failed_starts,
    "pools": pools,
    "adoptions": adoptions,
}


@pytest.mark.parametrize("case", CASES)
async def test_an_event_costs_the_same_with_twenty_times_as_many_children(case: str) -> None:
    few, many = await CASES[case](FEW), await CASES[case](MANY)
    assert many < 6 * few + 0.002, f"{many / few:.1f} times as long"
