from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory


@pytest.fixture
async def cluster(cluster_address: str) -> AsyncIterator[RayCluster]:
    assert cluster_address
    async with await RayCluster.connect() as cluster:
        yield cluster


@pytest.fixture
async def factory(cluster: RayCluster) -> AsyncIterator[RayHostFactory]:
    async with RayHostFactory(cluster) as factory:
        yield factory
