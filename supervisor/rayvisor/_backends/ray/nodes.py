"""The loss of nodes of the cluster, and its reasons.

Ray's control store pushes a loss as soon as it has declared the node dead. Its node table is polled too:
by default every 10 s, and every second while nothing is pushed. The link to a host learns of the loss of its
node here, without calling an actor that cannot be reached any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.push import PushChannel
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = ["NodeWatch"]

log = get_logger("rayvisor.ray")

_DEAD = 1
_REASONS = {
    1: "it was removed",
    2: "it ended by itself, or does not answer any more",
    3: "it was preempted",
    4: "it was removed for being idle",
}


class NodeWatch:
    """Watches the nodes of one cluster, from the first call of `lost` on.

    Parameters
    ----------
    cluster
        The connection.
    push
        Whether to try Ray's push API. Without it the table is polled, by default every second.
    timeouts
        Intervals between two polls, and times of the push API.
    """

    def __init__(
        self, cluster: RayCluster, *, push: bool = True, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray
    ) -> None:
        self._cluster = cluster
        self._timeouts = timeouts
        self._channel = PushChannel(
            cluster, "NodeInfo", on_record=self._on_record, on_gap=self._poll_soon, timeouts=timeouts
        )
        self._channel.unsupported = not push
        self._lost: dict[str, asyncio.Future[str]] = {}
        self._poll_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pushing(self) -> bool:
        """Whether changes are pushed now."""
        return self._channel.active

    async def lost(self, node_id: str) -> str:
        """Wait until a node is lost, and return the reason as text."""
        gone = self._lost.get(node_id)
        if gone is None:
            gone = self._lost[node_id] = asyncio.get_running_loop().create_future()
            self._poll_soon()
        if self._task is None:
            self._task = asyncio.create_task(self._poll_repeatedly(), name="watch of the nodes")
            if not self._channel.unsupported:
                self._channel.start()
        return await asyncio.shield(gone)

    async def close(self) -> None:
        """Stop watching."""
        await self._channel.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _on_record(self, key: bytes, record: Any) -> None:
        if record.state == _DEAD:
            told = record.death_info
            self._note(
                key.hex(), str(told.reason_message) or _REASONS.get(told.reason, "Ray gives no reason")
            )

    def _poll_soon(self) -> None:
        self._poll_now.set()

    async def _poll_repeatedly(self) -> None:
        while True:
            self._poll_now.clear()
            await self._poll()
            pause = self._timeouts.pushed_poll if self.pushing else self._timeouts.node_poll
            with anyio.move_on_after(pause):
                await self._poll_now.wait()

    async def _poll(self) -> None:
        try:
            nodes = await self._cluster.nodes()
        except Exception as error:  # noqa: BLE001 - Ray may fail in any way; the next poll follows
            log.warning("ray.nodes.unavailable", error=f"{type(error).__name__}: {error}"[:500])
            return
        for node_id, alive in nodes.items():
            if not alive:
                self._note(node_id, "Ray's table lists it as dead")

    def _note(self, node_id: str, why: str) -> None:
        gone = self._lost.get(node_id)
        if gone is not None and not gone.done():  # the other nodes have no hosts of ours
            log.warning("ray.node.lost", node=node_id, reason=why, pushed=self.pushing)
            gone.set_result(why)
