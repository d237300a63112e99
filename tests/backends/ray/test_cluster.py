from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from rayvisor._backends.process.identity import alive
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._core.protocol.wire import ProcessId

pytestmark = pytest.mark.ray

DRIVER = """
import asyncio, json, os
from rayvisor._core.protocol.links import ActorOptions
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory

async def main():
    # Options that only a new Ray takes do not prevent attaching to a running one.
    attached = await RayCluster.connect(options={"num_cpus": 2})
    async with attached as cluster, RayHostFactory(cluster) as factory:
        host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
        description = await host.ready(90)
        print(json.dumps({"started": cluster.started, "host": description.process.pid}), flush=True)

asyncio.run(main())
"""

CHECKOUT = """
import asyncio, json
from rayvisor._core.protocol.links import ActorOptions
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory
from rayvisor._backends.ray.package import package_folders

async def main():
    upload = {"runtime_env": {"py_modules": list(package_folders())}}
    async with await RayCluster.connect(options=upload) as cluster, RayHostFactory(cluster) as factory:
        import ray

        def where():
            import rayvisor
            return rayvisor.__file__

        found = await ray.remote(where).remote()
        host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
        node = (await host.ready(60)).node
        print(json.dumps({"found": found, "node": node}), flush=True)

asyncio.run(main())
"""

LOCAL = """
import asyncio, json, os, sys
from rayvisor._core.protocol.links import ActorOptions
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory

async def main():
    assert "ray" not in sys.modules
    turns = 0
    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1
    counting = asyncio.create_task(count())
    cluster = await RayCluster.connect(num_cpus=2)
    counting.cancel()
    async with cluster, RayHostFactory(cluster) as factory:
        host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
        info = await host.ensure_started(1, {}, 90)
        if sys.argv[1] == "wait":
            ours = [(await host.ready(90)).process, *info.processes]
            print(json.dumps({"ours": ours}), flush=True)
            await asyncio.sleep(600)
        os.kill((await host.ready(90)).process.pid, 9)  # Ray must not print its word on that
        await host.ended()
        await asyncio.sleep(1)
        import psutil
        pids = [process.pid for process in psutil.Process().children(recursive=True)]
        answer = {"started": cluster.started, "turns": turns, "pids": pids}
        print(json.dumps(answer), flush=True)
    import psutil
    left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    print(json.dumps({"left": left}), flush=True)

asyncio.run(main())
"""


def without_address() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


async def run(program: str, *arguments: str, env: dict[str, str]) -> list[dict[str, object]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", program, *arguments, env=env, stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    assert b"raylet" not in output
    return [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]


async def test_an_attached_driver_leaves_the_cluster_running_and_nothing_of_its_own(
    cluster: RayCluster, cluster_address: str
) -> None:
    (answer,) = await run(DRIVER, env={**without_address(), "RAY_ADDRESS": cluster_address})
    assert answer["started"] is False
    assert not psutil.pid_exists(int(str(answer["host"])))
    assert (await cluster.nodes())[cluster.node_id]
    assert not cluster.started


async def test_workers_import_the_checkout_that_the_line_in_the_error_uploads(cluster_address: str) -> None:
    (answer,) = await run(CHECKOUT, env={**without_address(), "RAY_ADDRESS": cluster_address})
    assert "py_modules_files" in str(answer["found"])
    assert answer["node"]


async def test_a_ray_that_somebody_else_initialised_is_used_and_left_initialised(
    cluster_address: str,
) -> None:
    import ray

    assert cluster_address
    cluster = await RayCluster.connect()
    assert not cluster.started
    await cluster.close()
    assert ray.is_initialized()


async def test_a_local_ray_is_started_beside_the_loop_and_gone_with_all_its_processes() -> None:
    answer, after = await run(LOCAL, "leave", env=without_address())
    assert answer["started"] is True
    # The loop ran on: Ray's core worker alone holds the interpreter while it is made, nothing else does.
    assert int(str(answer["turns"])) > 10
    assert after["left"] == []


async def test_a_driver_that_is_killed_leaves_no_host_and_no_engine_behind() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", LOCAL, "wait", env=without_address(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    line = b""
    while not line.startswith(b"{"):
        line = await asyncio.wait_for(process.stdout.readline(), 120)
    ours = [ProcessId(*found) for found in json.loads(line)["ours"]]
    assert len(ours) == 3
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    timeout = time.monotonic() + 60
    while any(alive(found) for found in ours):
        assert time.monotonic() < timeout, ours
        await asyncio.sleep(0.05)


def test_importing_rayvisor_does_not_import_ray() -> None:
    modules = (
        "rayvisor, rayvisor._backends.ray.errors, rayvisor._backends.ray.hosts, rayvisor._backends.ray.actors"
    )
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
