"""The figures of a pool are computed once for each look at its tree, however many engines it has."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from rayvisor._core.requests.stats import stats_of
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.introspection import status
from rayvisor._runtime.pool import runtime as pool_runtime
from rayvisor._runtime.pool.registry import PoolRegistry
from rayvisor.specs import SupervisorSpec, engine_pool
from rayvisor.testing import VirtualTree
from tests.core.requests.oracle import INFO


async def test_a_status_computes_the_figures_of_each_pool_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [engine_pool(name, size=20, engine_args={}, engine="sim") for name in ("a", "b")]
    tree = VirtualTree(SupervisorSpec(children=pools))
    computed: list[Any] = []
    monkeypatch.setattr(
        pool_runtime,
        "stats_of",
        lambda scheduler: [computed.append(scheduler), stats_of(scheduler)][-1],  # type: ignore[func-returns-value]
    )
    async with anyio.create_task_group() as tasks:
        runtime = cast("Any", SimpleNamespace(core=tree.core))
        registry = PoolRegistry(cast("Any", None), tasks, Random(1), lambda *_: None)
        for name in ("a", "b"):
            registry.observe(m.SupervisorChanged(name, "starting"), runtime)
            pool = registry.get(name)
            assert pool is not None
            for child in tree.core.children:
                if child.startswith(f"{name}/"):
                    pool.engine_up(child, 1, INFO)
        engines = SimpleNamespace(epoch=lambda _: 1, processes=lambda _: [], url=lambda _: "")
        session = SimpleNamespace(pools=registry, engines=engines, runtime=runtime, began=0.0)
        root = status(cast("Any", session), "")
        assert [len(pool.children) for pool in root.children] == [20, 20]
        assert all(pool.requests is not None for pool in root.children)
        assert len(computed) == 2
        tasks.cancel_scope.cancel()
