"""The actors of vLLM's Ray executor end with the process that started them.

vLLM's CPU platform names no Ray device, so its Ray executor does not run there. What matters is who owns its
workers: EngineCore itself connects to Ray, makes a placement group and an actor for each worker in it. This
is that, and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys

import anyio
import anyio.abc
import psutil
import pytest
from anyio.streams.text import TextReceiveStream

from tests.waiting import until

pytestmark = pytest.mark.ray

ENGINE_CORE = """
import os, sys, time, warnings
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

warnings.simplefilter("ignore")
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
group = placement_group([{"CPU": 0.01}], strategy="PACK")
ray.get(group.ready(), timeout=60)

@ray.remote(num_cpus=0.01)
class Worker:
    def pid(self):
        return os.getpid()

place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
worker = Worker.options(scheduling_strategy=place).remote()
print("PLACED", ray.get(worker.pid.remote(), timeout=60), group.id.hex(), flush=True)
time.sleep(600)
"""


async def placed(core: anyio.abc.Process) -> tuple[str, str]:
    """The worker's pid and the placement group, from the line that says so: Ray prints lines of its own."""
    assert core.stdout is not None
    said = ""
    async for piece in TextReceiveStream(core.stdout):
        said += piece
        for line in said.splitlines(keepends=True):
            if line.startswith("PLACED") and line.endswith("\n"):
                _, pid, group = line.split()
                return pid, group
    raise AssertionError(f"it ended without a word of its worker: {said!r}")


async def test_workers_and_placement_group_of_a_killed_engine_core_are_gone(cluster_address: str) -> None:
    from ray.util import placement_group_table

    core = await anyio.open_process([sys.executable, "-c", ENGINE_CORE, cluster_address], stderr=None)
    try:
        with anyio.fail_after(120):
            pid, group = await placed(core)
        worker = psutil.Process(int(pid))
        assert placement_group_table()[group]["state"] == "CREATED"
        os.kill(core.pid, signal.SIGKILL)
        await until(lambda: not worker.is_running())
        await until(lambda: placement_group_table()[group]["state"] == "REMOVED")
    finally:
        with anyio.CancelScope(shield=True):
            await core.aclose()
