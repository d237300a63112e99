"""Which nodes of the cluster have gone, and why.

Learnt by push, as soon as Ray's control store has ruled; its table is looked at now and then as well, and
often while nothing is pushed. Who waits on a host hears of its node here, without asking an actor that
nobody can reach any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.push import PushChannel
from rayvisor._log import get_logger

__all__ = ["NodeWatch"]

log = get_logger("rayvisor.ray")

_ASK_SECONDS = 1.0
_SNAPSHOT_SECONDS = 10.0
_DEAD = 1
_REASONS = {
    1: "it was removed",
    2: "it ended by itself, or is not heard of any more",
    3: "it was preempted",
    4: "it was removed for being idle",
}


class NodeWatch:
    """Watches the nodes of one cluster, from the first time that somebody asks.

    Parameters
    ----------
    cluster
        The connection.
    push
        Whether to try Ray's push API. Without it the table is looked at every second.
    """

    def __init__(self, cluster: RayCluster, *, push: bool = True) -> None:
        self._cluster = cluster
        self._channel = PushChannel(cluster, "NodeInfo", hear=self._hear, catch_up=self._look_soon)
        self._channel.missing = not push
        self._gone: dict[str, asyncio.Future[str]] = {}
        self._asked_for = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pushing(self) -> bool:
        """Whether news come by push now."""
        return self._channel.telling

    async def lost(self, node_id: str) -> str:
        """Wait until a node has gone; why, in words."""
        gone = self._gone.get(node_id)
        if gone is None:
            gone = self._gone[node_id] = asyncio.get_running_loop().create_future()
            self._look_soon()
        if self._task is None:
            self._task = asyncio.create_task(self._attend(), name="watch of the nodes")
            if not self._channel.missing:
                self._channel.start()
        return await asyncio.shield(gone)

    async def close(self) -> None:
        """Watch nothing any more."""
        await self._channel.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _hear(self, key: bytes, record: Any) -> None:
        if record.state == _DEAD:
            told = record.death_info
            self._note(key.hex(), str(told.reason_message) or _REASONS.get(told.reason, "Ray says no more"))

    def _look_soon(self) -> None:
        self._asked_for.set()

    async def _attend(self) -> None:
        while True:
            self._asked_for.clear()
            await self._look()
            with anyio.move_on_after(_SNAPSHOT_SECONDS if self.pushing else _ASK_SECONDS):
                await self._asked_for.wait()

    async def _look(self) -> None:
        try:
            nodes = await self._cluster.nodes()
        except Exception as error:  # noqa: BLE001 - Ray may fail in any way; it is asked again
            log.warning("ray.nodes.unavailable", error=f"{type(error).__name__}: {error}"[:500])
            return
        for node_id, alive in nodes.items():
            if not alive:
                self._note(node_id, "Ray's table has it as dead")

    def _note(self, node_id: str, why: str) -> None:
        gone = self._gone.get(node_id)
        if gone is not None and not gone.done():  # nobody asks for the others
            log.warning("ray.node.lost", node=node_id, why=why, pushed=self.pushing)
            gone.set_result(why)
