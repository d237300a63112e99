"""A host factory leaves nothing of a host that has ended, whatever fails meanwhile. No Ray is needed."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rayvisor._backends.process.identity import own_identity
from rayvisor._backends.ray.calls import Lane
from rayvisor._backends.ray.cleanup import attempt
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._backends.ray.host_actor import HostHello
from rayvisor._backends.ray.host_factory import RayHostFactory
from rayvisor._backends.ray.hosts import RayHost
from rayvisor._backends.ray.nodes import NodeWatch
from rayvisor._core.protocol.links import CleanupReport
from rayvisor.specs import ActorOptions
from tests.waiting import until

PLAIN = ActorOptions()


class ActorDiedError(Exception):
    """Named as Ray's, and of a module of that name."""

    __module__ = "ray.exceptions"


class RayError(Exception):
    __module__ = "ray.exceptions"


class RayActorError(ActorDiedError, RayError):
    __module__ = "ray.exceptions"


class ActorUnavailableError(RayError):
    __module__ = "ray.exceptions"


class Actor:
    """A host actor: its sentinel call fails once it is killed."""

    def __init__(self) -> None:
        self.killed = asyncio.Event()
        self.unavailable = False
        description = SimpleNamespace(process=own_identity(), node="10.0.0.1", stack_file="")
        self._hello = HostHello(cast("Any", description), "node-1", 0, "")
        self.describe = SimpleNamespace(remote=self._describe)
        self.watch = SimpleNamespace(remote=self._watch)

    async def _describe(self) -> HostHello:
        return self._hello

    async def _watch(self) -> None:
        await self.killed.wait()
        raise ActorUnavailableError("unreachable") if self.unavailable else RayActorError("the actor died")


class Cluster:
    """A connection: calls are answered by their names."""

    started = False
    node_id = "node-1"

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.reports_deaths = True
        self.kill_fails: Exception | None = None
        self.create_fails: Exception | None = None
        self.lanes: list[tuple[str, Lane]] = []

    async def call(
        self, name: str, function: Callable[[], Any], *, lane: Lane = Lane.CONTROL, **_: Any
    ) -> Any:
        del function
        self.lanes.append((name.partition(" of ")[0], lane))
        if name.startswith("ray.kill"):
            if self.kill_fails is not None:
                raise self.kill_fails
            if self.reports_deaths:
                for actor in self.actors:
                    actor.killed.set()
            return None
        if self.create_fails is not None:
            raise self.create_fails
        self.actors.append(Actor())
        return self.actors[-1]

    async def nodes(self) -> dict[str, bool]:
        return {"node-1": True, "node-2": True}


class Agents:
    """Node agents that prove every end, unless they are told to fail."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.fail_for = ""
        self.closed = False

    async def adopt(self, *_: Any) -> None: ...

    async def host_ended(self, *_: Any) -> None:
        await asyncio.Event().wait()

    async def end(self, node_id: str, key: str, timeout: float) -> CleanupReport:
        del node_id, timeout
        if self.fail_for and self.fail_for in key:
            raise OSError("the agent's answer cannot be read")
        self.ended.append(key.partition("/")[2])
        return CleanupReport((), (), verified=True)

    async def close(self) -> None:
        self.closed = True
        if self.fail_for == "close":
            raise OSError("no")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def agents() -> Agents:
    return Agents()


@pytest.fixture
async def factory(cluster: Cluster, agents: Agents) -> AsyncIterator[RayHostFactory]:
    factory = RayHostFactory(cast("RayCluster", cluster))
    factory.agents = cast("Any", agents)
    factory.nodes = NodeWatch(cast("RayCluster", cluster), push=False)
    yield factory
    await factory.close(1.0)


async def started(factory: RayHostFactory, child: str = "llm/1", epoch: int = 1, **options: Any) -> RayHost:
    host = await factory.create(child=child, epoch=epoch, engine="sim", options=ActorOptions(**options))
    await host.ready(5)
    return host


def tasks_of(child: str) -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if child in task.get_name()]


async def test_nothing_is_kept_of_a_host_that_was_ended(factory: RayHostFactory) -> None:
    for epoch in range(1, 4):
        host = await started(factory, epoch=epoch)
        known = weakref.ref(host)
        assert tasks_of("llm/1")
        assert (await host.end(5)).verified
        assert (await host.ended()).intended
        del host
        await until(lambda: not tasks_of("llm/1"))
        gc.collect()
        assert known() is None
    assert factory._hosts == {}
    assert factory._ended == set()


async def test_a_host_whose_death_ray_never_reports_is_released_at_the_end(
    cluster: Cluster, factory: RayHostFactory
) -> None:
    cluster.reports_deaths = False
    host = await started(factory)
    waiting = asyncio.create_task(host.ended())
    assert (await host.end(5)).verified
    assert not waiting.done()
    await factory.close(1.0)
    end = await asyncio.wait_for(waiting, 5)
    assert end.intended
    assert end.root.type == "HostEnded"
    assert tasks_of("llm/1") == []


async def test_a_host_that_is_proven_gone_has_ended_though_ray_only_calls_it_unavailable(
    cluster: Cluster, factory: RayHostFactory
) -> None:
    host = await started(factory)
    cluster.actors[0].unavailable = True
    cluster.actors[0].killed.set()
    assert (await host.ended()).unavailable
    assert (await host.end(5)).verified
    end = await asyncio.wait_for(host.ended(), 5)
    if end.unavailable:  # the sentinel was armed again before the end
        end = await asyncio.wait_for(host.ended(), 5)
    assert (end.unavailable, end.intended) == (False, True)


async def test_the_end_of_one_host_that_fails_skips_no_other_and_is_no_proof(
    factory: RayHostFactory, agents: Agents
) -> None:
    for number in (1, 2, 3):
        await started(factory, f"llm/{number}")
    agents.fail_for = "llm/2"
    report = await factory._end_all(list(factory._hosts.values()), 1.0)
    assert not report.verified
    assert agents.ended == ["llm/1/1", "llm/3/1"]
    assert tasks_of("llm/") == []


async def test_a_failing_step_of_close_skips_no_other(factory: RayHostFactory, agents: Agents) -> None:
    await started(factory)
    agents.fail_for = "close"
    closed: list[str] = []

    async def close() -> None:
        closed.append("placement groups")

    factory._placement_groups = cast("Any", SimpleNamespace(close=close))
    await factory.close(1.0)
    assert agents.closed
    assert agents.ended == ["llm/1/1"]
    assert closed == ["placement groups"]


@pytest.mark.parametrize("error", [RayCallTimeout("ray.kill", 1.0), ValueError("no such actor")])
async def test_a_kill_that_fails_leaves_the_host_to_its_node_agent(
    cluster: Cluster, factory: RayHostFactory, agents: Agents, error: Exception
) -> None:
    host = await started(factory)
    cluster.kill_fails = error
    assert (await host.end(5)).verified
    assert agents.ended == ["llm/1/1"]


async def test_a_host_that_could_not_be_created_holds_up_no_sibling(
    cluster: Cluster, factory: RayHostFactory
) -> None:
    cluster.create_fails = OSError("no")
    with pytest.raises(OSError, match="no"):
        await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    cluster.create_fails = None
    began = time.monotonic()
    await started(factory, "llm/2", apart_from=("1",))
    assert time.monotonic() - began < 5


async def test_a_host_that_was_ended_before_it_answered_holds_up_no_sibling(
    cluster: Cluster, factory: RayHostFactory
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    waiting = asyncio.create_task(started(factory, "llm/2", apart_from=("1",)))
    await asyncio.sleep(0)
    await host.end(5)
    await asyncio.wait_for(waiting, 5)
    assert len(cluster.actors) == 2


async def test_kills_and_creations_do_not_share_threads(cluster: Cluster, factory: RayHostFactory) -> None:
    await (await started(factory)).end(5)
    lanes = dict(cluster.lanes)
    assert lanes["the host actor"] is Lane.CREATE
    assert lanes["ray.kill"] is Lane.CONTROL


async def test_a_step_of_a_clean_up_can_be_cancelled_and_its_failure_is_none() -> None:
    async def fail() -> int:
        raise OSError("no")

    assert await attempt("fails", fail()) is None
    assert await attempt("sleeps", asyncio.sleep(0, 7)) == 7
    waiting = asyncio.create_task(attempt("waits", asyncio.Event().wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
