from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import anyio
import pytest

from rayvisor._ray.cluster import RayCluster
from rayvisor._ray.hosts import RayPlace


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """One Ray for all tests that need no Ray of their own; its address."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its future defaults
        context = ray.init(
            address="local", num_cpus=4, resources={"slot": 4}, include_dashboard=False, log_to_driver=False
        )
    yield str(context.address_info["address"])  # type: ignore[attr-defined]
    ray.shutdown()


@pytest.fixture
async def cluster(local_ray: str) -> AsyncIterator[RayCluster]:
    assert local_ray
    async with await RayCluster.connect() as cluster:
        yield cluster


@pytest.fixture
async def place(cluster: RayCluster) -> AsyncIterator[RayPlace]:
    async with RayPlace(cluster) as place:
        yield place


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait for a condition while the loop goes on."""

    async def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - the conditions are other processes' doings
                await anyio.sleep(0.01)

    return wait
