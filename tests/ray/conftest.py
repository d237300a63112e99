from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest

from rayvisor._ray.cluster import RayCluster
from rayvisor._ray.hosts import RayPlace


@pytest.fixture
async def cluster(cluster_address: str) -> AsyncIterator[RayCluster]:
    assert cluster_address
    async with await RayCluster.connect() as cluster:
        yield cluster


@pytest.fixture
async def place(cluster: RayCluster) -> AsyncIterator[RayPlace]:
    async with RayPlace(cluster) as place:
        yield place


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait for a condition while the loop goes on."""

    async def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - the conditions are other processes' doings
                await anyio.sleep(0.01)

    return wait
