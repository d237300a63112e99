from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """Address of the one Ray of this test session: the one that is there, or one started for the purpose."""
    import ray

    if ray.is_initialized():
        yield str(ray.get_runtime_context().gcs_address)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its future defaults
        context = ray.init(
            address="local", num_cpus=4, resources={"slot": 4}, include_dashboard=False, log_to_driver=False
        )
    yield str(context.address_info["address"])  # type: ignore[attr-defined]
    ray.shutdown()
