"""While Ray's control store hangs, the supervisor goes on, and declares nobody dead."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import psutil
import pytest

import rayvisor as rv
from rayvisor import records as r

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]

LAG_SECONDS = 0.5
"""On a loaded machine; `python -m benchmarks lag` has the figure of an idle one, which is a hundredth."""
STOPPED_SECONDS = 2.0


def worker() -> Any:
    """A class that need not be imported where it runs."""

    class Worker:
        def pid(self) -> int:
            return os.getpid()

    return Worker


@contextmanager
def stopped_gcs() -> Iterator[None]:
    (gcs,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server"]
    gcs.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        gcs.send_signal(signal.SIGCONT)


async def test_while_the_gcs_is_stopped_the_loop_goes_on_and_nobody_is_declared_dead() -> None:
    import ray

    remote: Any = ray.remote
    handle = remote(worker()).options(num_cpus=0, max_restarts=-1).remote()
    children = [rv.actor("own", worker(), num_cpus=0, probe="pid"), rv.adopt("theirs", handle, probe="pid")]
    spec = rv.SupervisorSpec(children=children, intensity=0)
    lags: list[float] = []
    async with rv.Supervisor(spec, handle_signals=False) as sup:
        watch = sup.watch()
        pid = await sup["own"].call("pid")
        with stopped_gcs():
            late = asyncio.create_task(sup.start_child(rv.actor("late", worker(), num_cpus=0)))
            end = time.monotonic() + STOPPED_SECONDS
            while (before := time.monotonic()) < end:
                await anyio.sleep(0.005)
                lags.append(time.monotonic() - before - 0.005)
            assert await sup["own"].options(timeout=60).call("pid") == pid
            assert await sup["theirs"].options(timeout=60).call("pid")
            assert sup.status("late").leaf == "STARTING"
        with anyio.fail_after(60):
            assert await late == "late"
        assert await sup["late"].options(timeout=60).call("pid")
    assert max(lags) < LAG_SECONDS
    records = [x async for x in watch]
    assert not [x for x in records if isinstance(x, (r.FaultSeen, r.EventLoopBlocked))]
    ray.kill(handle)
