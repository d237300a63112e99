from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.ray

TWO_NODES = """
import asyncio, json, os, signal, time
import ray
from ray.cluster_utils import Cluster
from rayvisor._core.protocol.links import ActorOptions
from rayvisor._backends.process.identity import alive
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory
from rayvisor._backends.ray.nodes import NodeWatch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
import rayvisor as rv

def large(runs):
    with open(runs, "a") as file:
        file.write(".")
    return b"x" * (4 << 20)

quick = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}
nodes = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 2, "resources": {"near": 1}, "include_dashboard": False, "_system_config": quick
    },
)
far = nodes.add_node(num_cpus=2, resources={"far": 1}, include_dashboard=False)
nodes.wait_for_nodes()

async def value(task):
    return await task

async def apart(factory, child, *siblings):
    options = ActorOptions(num_cpus=0.1, apart_from=siblings)
    host = await factory.create(child=child, epoch=1, engine="sim", options=options)
    await host.ready(60)
    return host.node_id

async def main():
    async with await RayCluster.connect(nodes.address) as cluster, RayHostFactory(cluster) as factory:
        near = await factory.create(
            child="llm/1", epoch=1, engine="sim", options=ActorOptions(num_cpus=0, resources={"near": 1})
        )
        host = await factory.create(
            child="llm/2", epoch=1, engine="sim", options=ActorOptions(num_cpus=0, resources={"far": 1})
        )
        info = await host.ensure_started(1, {}, 60)
        node = host.node_id
        await near.ready(60)
        pool = await asyncio.gather(apart(factory, "pool/1", "2"), apart(factory, "pool/2", "1"))
        one_more = await apart(factory, "pool/3", "1", "2")
        processes = [(await host.ready(30)).process, *info.processes]
        runs = os.path.join(os.environ["RAY_TMPDIR"], "runs")
        there = {"scheduling_strategy": NodeAffinitySchedulingStrategy(far.node_id, soft=True)}
        task = rv.submit(large, runs, policy=rv.TaskPolicy(options=there))
        while not task.done():
            await asyncio.sleep(0.02)
        task_ran = [task.state, os.path.getsize(runs)]
        ways = [NodeWatch(cluster), NodeWatch(cluster, push=False)]
        waits = [asyncio.create_task(way.lost(far.node_id)) for way in ways]
        while not ways[0].pushing:
            await asyncio.sleep(0.02)
        raylet = far.all_processes["raylet"][0].process
        raylet.kill()
        began = time.monotonic()
        ends = []
        while not ends or ends[-1].unavailable:
            ends.append(await asyncio.wait_for(host.ended(), 60))
            await asyncio.sleep(0.2)
        known = time.monotonic() - began
        report = await host.end(10)
        while any(alive(process) for process in processes) and time.monotonic() - began < 30:
            await asyncio.sleep(0.05)
        told = await asyncio.wait_for(asyncio.gather(*waits), 60)
        pushing = [way.pushing for way in ways]
        for way in ways:
            await way.close()
        print(json.dumps({
            "told": told,
            "pushing": pushing,
            "other": node != near.node_id,
            "apart": [len(set(pool)), one_more in pool],
            "verified": report.verified,
            "known": known,
            "root": [end.root.type for end in ends],
            "left": [process for process in processes if alive(process)],
            "near": (await near.ready(30)).node,
            "lost": [*task_ran, len(await asyncio.wait_for(value(task), 60)), os.path.getsize(runs)],
        }), flush=True)

asyncio.run(main())
ray.shutdown()
nodes.shutdown()
"""


async def test_spares_are_apart_a_dead_nodes_word_is_enough_and_the_other_node_goes_on() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Ray notes the address of such a cluster in its folder, for whoever looks for one: not in the user's.
    # A short path, since sockets go there too.
    with tempfile.TemporaryDirectory(prefix="rv", ignore_cleanup_errors=True) as folder:
        environment["RAY_TMPDIR"] = folder
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", TWO_NODES, env=environment, stdout=subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 200)
    (line,) = [line for line in output.decode().splitlines() if line.startswith("{")]
    answer = json.loads(line)
    assert answer["other"]
    assert answer["apart"] == [2, True]  # a spare is on another node, if there is one
    assert answer["verified"]
    assert answer["root"]
    assert answer["pushing"] == [True, False]
    assert all(answer["told"])  # why it has gone, pushed or asked for
    assert answer["left"] == []
    assert answer["near"]
    assert answer["lost"] == ["SUCCEEDED", 1, 4 << 20, 2]  # a task's lost result is made again
