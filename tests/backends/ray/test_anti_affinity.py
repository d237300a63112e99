from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from rayvisor._backends.ray.anti_affinity import AntiAffinity
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor.timeouts import RayTimeouts


class Cluster:
    def __init__(self, *nodes: str) -> None:
        self.alive: dict[str, bool] | None = dict.fromkeys(nodes, True)

    async def nodes(self) -> dict[str, bool]:
        if self.alive is None:
            raise RayCallTimeout("ray.nodes", 5.0)
        return self.alive


def affinity_on(cluster: Any) -> AntiAffinity:
    return AntiAffinity(cast("RayCluster", cluster))


async def test_a_host_that_is_created_later_waits_for_the_locations_of_the_others() -> None:
    affinity = affinity_on(Cluster("a", "b"))
    first = affinity.begin("llm/1")
    affinity.begin("llm/2")
    asking = asyncio.create_task(affinity.nodes("llm/2", ("1", "4")))
    await asyncio.sleep(0)
    assert not asking.done()
    first.found("a")
    first.found("a")  # its host answers again
    assert await asking == ["a"]


async def test_a_host_that_finds_no_node_in_time_is_not_waited_for() -> None:
    cluster: Any = Cluster("a", "b")
    affinity = AntiAffinity(cluster, timeouts=RayTimeouts(apart_from=0.01))
    affinity.begin("llm/1")
    affinity.begin("llm/2").found("b")
    async with asyncio.timeout(5.0):
        assert await affinity.nodes("llm/3", ("1", "2")) == ["b"]


async def test_a_host_that_was_not_begun_or_has_ended_is_not_waited_for() -> None:
    affinity = affinity_on(Cluster("a", "b"))
    first = affinity.begin("llm/1")
    assert await affinity.nodes("llm/1", ("2",)) == []
    first.found("a")
    first.end()
    assert await affinity.nodes("llm/2", ("1",)) == []


async def test_the_end_of_a_former_host_is_not_that_of_the_one_that_starts() -> None:
    affinity = affinity_on(Cluster("a", "b"))
    former = affinity.begin("llm/1")
    former.found("a")
    present = affinity.begin("llm/1")
    former.end()
    present.found("b")
    assert await affinity.nodes("llm/2", ("1",)) == ["b"]


@pytest.mark.parametrize("waits", [True, False], ids=["before", "after"])
async def test_a_host_that_could_not_be_created_holds_up_no_sibling(*, waits: bool) -> None:
    affinity = affinity_on(Cluster("a", "b"))
    failed = affinity.begin("llm/1")
    other = affinity.begin("llm/3")
    other.found("b")
    affinity.begin("llm/2")
    if not waits:
        failed.end()
    asking = asyncio.create_task(affinity.nodes("llm/2", ("1", "3")))
    await asyncio.sleep(0)
    failed.end()
    assert await asyncio.wait_for(asking, 5) == ["b"]


async def test_with_one_node_or_without_an_answer_nothing_is_waited_for_or_avoided() -> None:
    cluster = Cluster("a")
    affinity = affinity_on(cluster)
    affinity.begin("llm/1")
    assert await affinity.nodes("llm/2", ("1",)) == []
    cluster.alive = None
    assert await affinity.nodes("llm/2", ("1",)) == []
