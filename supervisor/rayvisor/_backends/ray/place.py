"""Where engine hosts are made on a cluster, and what they share there: agents, news of nodes, placement."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from typing import Any, Self

from rayvisor._backends.ray import package
from rayvisor._backends.ray.actor_classes import host_class
from rayvisor._backends.ray.agents import NodeAgents
from rayvisor._backends.ray.anti_affinity import Neighbours
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._backends.ray.hosts import RayHost, package_env
from rayvisor._backends.ray.nodes import NodeWatch
from rayvisor._backends.ray.options import explain_pending, ray_options
from rayvisor._backends.ray.placement import Placements
from rayvisor._core.protocol.links import CleanupReport, merge_reports
from rayvisor._log import get_logger
from rayvisor.specs import ActorOptions

__all__ = ["RayHostFactory"]

log = get_logger("rayvisor.ray")

_CREATE_SECONDS = 20.0


class RayHostFactory:
    """Makes host actors on a cluster, and ends them. Use as a context manager, or call `close`.

    Parameters
    ----------
    cluster
        The connection; it is the caller's, and stays open.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self.cluster = cluster
        self.agents = NodeAgents(cluster)
        self.neighbours = Neighbours(cluster)
        self.nodes = NodeWatch(cluster)
        self._placements = Placements(cluster)
        self._token = secrets.token_hex(4)
        self._hosts: dict[str, RayHost] = {}
        self._warming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def create(self, *, child: str, epoch: int, engine: str, options: ActorOptions) -> RayHost:
        """Make a host, see `HostFactory.create`. An epoch of a child is made once."""
        key = f"{self._token}/{child}/{epoch}"
        if key in self._hosts:
            raise ValueError(f"epoch={epoch}: {child!r} has a host of this epoch already")
        if self.cluster.started and self._warming is None:
            # On a local Ray it is known where the first host will be: have the agent there in the meantime.
            self._warming = asyncio.create_task(
                self.agents.prepare(self.cluster.node_id, package_env(options))
            )
        self.neighbours.begin(child)
        avoid = await self.neighbours.nodes(child, options.apart_from)
        group = await self._placements.get(child, options.placement)
        asked = ray_options(options, name=f"rayvisor-{key}", group=group, avoid=avoid)
        wanted = package.local_version()

        def make() -> Any:
            return host_class().options(**asked).remote(key, child, epoch, engine, wanted)

        def undo(actor: Any) -> None:
            import ray

            ray.kill(actor)

        actor = await self.cluster.call(
            f"the host actor of {child}", make, timeout=_CREATE_SECONDS, undo=undo
        )
        host = self._hosts[key] = RayHost(self, actor, key, child, epoch, options)
        log.info("host.created", child=child, epoch=epoch, name=asked["name"])
        return host

    async def end_child(self, child: str, timeout: float) -> CleanupReport:
        """End every host of a child that is left, and remove its placement group."""
        hosts = [host for host in self._hosts.values() if host.child == child]
        report = await self._end_all(hosts, timeout)
        await self._placements.remove(child)
        return report

    async def close(self, timeout: float = 30.0) -> None:
        """End every host that is left, the agents, and the placement groups."""
        await self._end_all(list(self._hosts.values()), timeout)
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
        await self.nodes.close()
        await self.agents.close()
        await self._placements.close()

    async def why_pending(self, options: ActorOptions) -> str:
        """Why an actor with these options does not come up, if the cluster's resources tell."""
        try:
            return explain_pending(options, await self.cluster.node_resources())
        except RayCallTimeout as timeout:
            return str(timeout)

    def forget(self, host: RayHost, *, verified: bool) -> None:
        """Drop a host that has been ended. One that may have left something stays on the list."""
        self.neighbours.is_on(host.child, "")
        if verified:
            self._hosts.pop(host.key, None)

    async def _end_all(self, hosts: Sequence[RayHost], timeout: float) -> CleanupReport:
        reports = await asyncio.gather(*(host.end(timeout) for host in hosts))
        for host in hosts:
            host.release()
            self._hosts.pop(host.key, None)
        return merge_reports(reports)
