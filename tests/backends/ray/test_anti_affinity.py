from __future__ import annotations

import asyncio
from typing import Any, cast

from rayvisor._backends.ray.anti_affinity import Neighbours
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout


class Cluster:
    def __init__(self, *nodes: str) -> None:
        self.alive: dict[str, bool] | None = dict.fromkeys(nodes, True)

    async def nodes(self) -> dict[str, bool]:
        if self.alive is None:
            raise RayCallTimeout("ray.nodes", 5.0)
        return self.alive


def neighbours(cluster: Any) -> Neighbours:
    return Neighbours(cast("RayCluster", cluster))


async def test_who_is_made_later_waits_until_it_is_known_where_the_others_are() -> None:
    known = neighbours(Cluster("a", "b"))
    known.begin("llm/1")
    known.begin("llm/2")
    asking = asyncio.create_task(known.nodes("llm/2", ("1", "4")))
    await asyncio.sleep(0)
    assert not asking.done()
    known.is_on("llm/1", "a")
    known.is_on("llm/1", "a")  # it greets again
    assert await asking == ["a"]


async def test_nobody_waits_for_one_that_was_not_begun_or_has_gone() -> None:
    known = neighbours(Cluster("a", "b"))
    known.begin("llm/1")
    assert await known.nodes("llm/1", ("2",)) == []
    known.is_on("llm/1", "a")
    known.is_on("llm/1", "")
    known.is_on("llm/9", "")
    assert await known.nodes("llm/2", ("1",)) == []


async def test_the_end_of_a_former_host_is_not_that_of_the_one_under_way() -> None:
    known = neighbours(Cluster("a", "b"))
    known.begin("llm/1")
    known.is_on("llm/1", "a")
    known.begin("llm/1")
    known.is_on("llm/1", "")
    known.is_on("llm/1", "b")
    assert await known.nodes("llm/2", ("1",)) == ["b"]


async def test_where_there_is_one_node_or_nobody_tells_nothing_is_waited_for_or_avoided() -> None:
    cluster = Cluster("a")
    known = neighbours(cluster)
    known.begin("llm/1")
    assert await known.nodes("llm/2", ("1",)) == []
    cluster.alive = None
    assert await known.nodes("llm/2", ("1",)) == []
