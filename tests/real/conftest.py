"""One real vLLM engine under a supervisor on a real Ray cluster, for all tests of a module."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

import rayvisor as rv

ARGUMENTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 32,
    "disable_log_stats": True,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def supervisor(random_model: Path, cluster_address: str) -> AsyncIterator[rv.Supervisor]:
    """A running supervisor with the pool ``llm`` of one real engine."""
    assert cluster_address
    spec = rv.SupervisorSpec(
        children=[
            rv.engine_pool(
                "llm",
                engine_args={"model": str(random_model), **ARGUMENTS},
                num_cpus=0,
                intensity=20,
                period=7200.0,
                request_timeout=240.0,
            )
        ]
    )
    supervisor = rv.Supervisor(spec, seed=1, handle_signals=False)
    up, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        # One task enters and exits the supervisor; the two halves of a fixture run in different tasks.
        async with supervisor:
            up.set()
            await done.wait()

    holding = asyncio.create_task(hold())
    waiting = asyncio.create_task(up.wait())
    await asyncio.wait({holding, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if holding.done():
        waiting.cancel()
        holding.result()
    yield supervisor
    done.set()
    await holding
