from __future__ import annotations

import os
import signal

import anyio
import pytest

from rayvisor._backends.process.identity import alive
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory
from rayvisor._core.protocol.wire import EngineInfo
from rayvisor.specs import ActorOptions

pytestmark = pytest.mark.ray


async def agent_pid(factory: RayHostFactory, node: str, *, other_than: int = 0) -> int:
    with anyio.fail_after(60):
        while True:
            pid = await factory.agents.pid(node)
            if pid not in {0, other_than}:
                return pid
            await anyio.sleep(0.02)


async def test_an_agent_that_dies_is_made_again_and_told_of_every_host(
    factory: RayHostFactory, cluster: RayCluster
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
    info = await host.ensure_started(1, {}, 90)
    assert isinstance(info, EngineInfo)
    first = await agent_pid(factory, cluster.node_id)
    os.kill(first, signal.SIGKILL)
    await agent_pid(factory, cluster.node_id, other_than=first)
    known = {process.pid for process in await factory.agents.snapshot(cluster.node_id, host.key)}
    assert known >= {process.pid for process in info.processes}
    report = await host.end(30)
    assert report.verified
    assert not any(alive(process) for process in info.processes)


async def test_a_stopped_agent_gives_no_proof_and_a_dead_one_is_replaced_for_it(
    factory: RayHostFactory, cluster: RayCluster
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
    await host.ready(90)
    pid = await agent_pid(factory, cluster.node_id)
    os.kill(pid, signal.SIGSTOP)
    report = await host.end(0.2)
    assert not report.verified
    os.kill(pid, signal.SIGKILL)
    assert (await host.end(30)).verified


async def test_a_node_that_is_dead_needs_no_agents_word(
    factory: RayHostFactory, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
    await host.ready(90)
    pid = await agent_pid(factory, cluster.node_id)
    os.kill(pid, signal.SIGSTOP)

    async def nodes(_: float = 5.0) -> dict[str, bool]:
        return {cluster.node_id: False}

    monkeypatch.setattr(cluster, "nodes", nodes)
    assert (await host.end(0.2)).verified
    os.kill(pid, signal.SIGKILL)
