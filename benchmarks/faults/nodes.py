"""Rows in which a whole node goes: the children move to another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rayvisor as rv
from benchmarks.faults.rows import Row
from benchmarks.faults.scene import Scene
from rayvisor.faults import FaultClass

__all__ = ["NODE_ROWS", "start_cluster"]

HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
"""Ray's health check, tuned: by default a lost node is noticed after 16 s."""


class Resident:
    """An actor that knows where it lives."""

    def node(self) -> str:
        """Id of its node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


class Nodes:
    """The cluster that the rows are played on: one head, and nodes that come and go."""

    cluster: Any = None


def start_cluster() -> Callable[[], None]:
    """Start a cluster of one node on this machine and connect to it; returns what ends it."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 8, "include_dashboard": False, "_system_config": HEALTH}
    Nodes.cluster = cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)

    def stop() -> None:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]

    return stop


async def node_goes(scene: Scene, *, gracefully: bool) -> None:
    """The node of an actor goes."""
    # Ray's own tools for this must be called on the main thread, and block it.
    cluster = Nodes.cluster
    nodes = {
        each.node_id: each for each in (cluster.add_node(num_cpus=1, resources={"spot": 1}) for _ in "12")
    }
    try:
        child = rv.actor("worker", Resident, num_cpus=0, resources={"spot": 1}, start_deadline=60.0)
        async with scene.tree(child, period=1e4) as tree:
            before = await tree.supervisor["worker"].call("node")
            scene.inject()
            cluster.remove_node(nodes.pop(before), allow_graceful=gracefully)
            await scene.back(tree, "worker")
            after = await tree.supervisor["worker"].call("node")
            scene.look("worker")
            scene.found.rung = "move" if after != before else "restart"
    finally:
        for node in nodes.values():
            cluster.remove_node(node, allow_graceful=True)


async def killed(scene: Scene) -> None:
    """Without a word."""
    await node_goes(scene, gracefully=False)


async def removed(scene: Scene) -> None:
    """In order."""
    await node_goes(scene, gracefully=True)


NODE_ROWS: tuple[Row, ...] = (
    Row("node killed", FaultClass.FATAL, "(?i)node", "move", killed, engine=False),
    Row("node removed", FaultClass.FATAL, "(?i)node", "move", removed, engine=False),
)
