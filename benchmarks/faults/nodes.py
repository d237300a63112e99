"""Rows about nodes: a node is lost or short of memory, and its children move or restart."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

import rayvisor as rv
from benchmarks.faults.rows import Row
from benchmarks.faults.trial import Trial
from rayvisor.faults import FaultClass

__all__ = ["NODE_ROWS", "start_cluster"]

HEALTH = {
    "health_check_initial_delay_ms": 0,  # otherwise a new node is not checked for 5 s
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
"""A faster health check of Ray; by default a lost node is detected after 16 s."""

ROOM_BYTES = 3 << 29
"""Additional memory that may be used before Ray's memory monitor acts on the cramped node."""


class HostActor:
    """An actor that reports its node."""

    def node(self) -> str:
        """Return the id of its node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


class Nodes:
    """The cluster of the rows: one head node, and nodes that are added and removed."""

    cluster: Any = None


def start_cluster() -> Callable[[], None]:
    """Start a cluster of one node on this machine and connect to it; return a function that stops it."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 8, "include_dashboard": False, "_system_config": HEALTH}
    Nodes.cluster = cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)

    def stop() -> None:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]

    return stop


async def node_lost(trial: Trial, *, gracefully: bool, notice: Callable[[str], None] | None = None) -> None:
    """Remove the node of an actor, with or without a notice to Ray."""
    # Ray's own tools for this must be called on the main thread and block it.
    cluster = Nodes.cluster
    nodes = {
        each.node_id: each for each in (cluster.add_node(num_cpus=1, resources={"spot": 1}) for _ in "12")
    }
    try:
        child = rv.actor("worker", HostActor, num_cpus=0, resources={"spot": 1}, start_timeout=60.0)
        async with trial.tree(child, period=1e4) as tree:
            before = await tree.supervisor["worker"].call("node")
            if notice is not None:
                notice(before)
            trial.inject()
            cluster.remove_node(nodes.pop(before), allow_graceful=gracefully)
            await trial.wait_recovered(tree, "worker")
            after = await tree.supervisor["worker"].call("node")
            trial.observe("worker")
            trial.observed.response = "move" if after != before else "restart"
    finally:
        for node in nodes.values():
            cluster.remove_node(node, allow_graceful=True)


async def killed(trial: Trial) -> None:
    """Remove the node without any notice."""
    await node_lost(trial, gracefully=False)


async def removed(trial: Trial) -> None:
    """Remove the node gracefully."""
    await node_lost(trial, gracefully=True)


async def preempted(trial: Trial) -> None:
    """Remove the node after a preemption notice."""
    await node_lost(trial, gracefully=False, notice=announce_preemption)


def announce_preemption(node: str) -> None:
    """Announce with Ray's command line that a node will be preempted; wait until the notice period ends."""
    command = f"drain-node --address {Nodes.cluster.address} --node-id {node} --deadline-remaining-seconds 1"
    reason = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot"
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *command.split(), *reason.split()],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    time.sleep(1.0)


class Glutton(HostActor):
    """An actor that takes more memory than its node has available."""

    def eat(self, amount: int) -> None:
        """Allocate ``amount`` bytes and wait."""
        self.memory = bytearray(os.urandom(1 << 20)) * (amount >> 20)
        time.sleep(60.0)


async def out_of_memory(trial: Trial) -> None:
    """Let Ray's memory monitor kill an actor."""
    cluster = Nodes.cluster
    memory = psutil.virtual_memory()
    most = (memory.total - memory.available + ROOM_BYTES) / memory.total
    env = {"RAY_memory_usage_threshold": f"{most:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    node = cluster.add_node(num_cpus=1, resources={"cramped": 1}, env_vars=env)
    try:
        child = rv.actor("worker", Glutton, num_cpus=0, resources={"cramped": 1}, start_timeout=60.0)
        async with trial.tree(child, period=1e4) as tree:
            await tree.supervisor["worker"].call("node")
            trial.inject()
            with contextlib.suppress(rv.RayvisorError):
                await tree.supervisor["worker"].call("eat", 2 * ROOM_BYTES)
            await trial.wait_recovered(tree, "worker")
            trial.observe("worker")
    finally:
        cluster.remove_node(node, allow_graceful=True)


NODE_ROWS: tuple[Row, ...] = (
    Row("node killed", FaultClass.FATAL, "(?i)node", "move", killed),
    Row("node removed", FaultClass.FATAL, "(?i)node", "move", removed),
    Row("node preempted", FaultClass.FATAL, "(?i)preempted", "move", preempted),
    Row("memory monitor", FaultClass.FATAL, "(?i)memory", "restart", out_of_memory),
)
