"""Creates engine hosts on a cluster, with what they share there: node agents, the node watch, placement."""

from __future__ import annotations

import asyncio
import pickle
import secrets
from collections.abc import Sequence
from typing import Any, Self

from rayvisor._backends.ray import package
from rayvisor._backends.ray.actor_classes import host_class
from rayvisor._backends.ray.agents import NodeAgents
from rayvisor._backends.ray.anti_affinity import AntiAffinity
from rayvisor._backends.ray.calls import Lane
from rayvisor._backends.ray.cleanup import attempt, kill_actor
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._backends.ray.hosts import RayHost, package_env
from rayvisor._backends.ray.nodes import NodeWatch
from rayvisor._backends.ray.options import explain_pending, ray_options
from rayvisor._backends.ray.placement_groups import PlacementGroups
from rayvisor._core.protocol.links import CleanupReport, merge_reports
from rayvisor._log import get_logger
from rayvisor.specs import ActorOptions
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["RayHostFactory"]

log = get_logger("rayvisor.ray")


class RayHostFactory:
    """Creates host actors on a cluster, and ends them. Use it as a context manager, or call `close`.

    Parameters
    ----------
    cluster
        The connection. It belongs to the caller and stays open.
    timeouts
        For calls to Ray, for the hosts and for the node agents.
    """

    def __init__(self, cluster: RayCluster, *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.cluster = cluster
        self.timeouts = timeouts.ray
        self.agents = NodeAgents(cluster, timeouts=timeouts)
        self.nodes = NodeWatch(cluster, timeouts=timeouts.ray)
        self._host_timeouts = pickle.dumps(timeouts)
        self._anti_affinity = AntiAffinity(cluster, timeouts=timeouts.ray)
        self._placement_groups = PlacementGroups(cluster)
        self._token = secrets.token_hex(4)
        self._hosts: dict[str, RayHost] = {}
        self._ended: set[RayHost] = set()
        """Hosts that are proven gone, while Ray has not reported their end yet."""
        self._warming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def create(self, *, child: str, epoch: int, engine: str, options: ActorOptions) -> RayHost:
        """Create a host, see `HostFactory.create`. Each epoch of a child is created once."""
        key = f"{self._token}/{child}/{epoch}"
        if key in self._hosts:
            raise ValueError(f"epoch={epoch}: {child!r} has a host of this epoch already")
        if self.cluster.started and self._warming is None:
            # On a local Ray the node of the first host is known: its agent is created in the meantime.
            self._warming = asyncio.create_task(
                self.agents.prepare(self.cluster.node_id, package_env(options))
            )
        location = self._anti_affinity.begin(child)
        try:
            avoid = await self._anti_affinity.nodes(child, options.apart_from)
            group = await self._placement_groups.get(child, options.placement)
            actor_options = ray_options(options, name=f"rayvisor-{key}", group=group, avoid=avoid)
            version = package.local_version()

            def make() -> Any:
                return (
                    host_class()
                    .options(**actor_options)
                    .remote(key, child, epoch, engine, version, self._host_timeouts)
                )

            actor = await self.cluster.call(
                f"the host actor of {child}",
                make,
                timeout=self.timeouts.create_host,
                undo=kill_actor,
                lane=Lane.CREATE,
            )
        except BaseException:
            location.end()  # siblings that wait for it must not wait in vain
            raise
        host = self._hosts[key] = RayHost(self, actor, key, location, epoch, options)
        log.info("host.created", child=child, epoch=epoch, name=actor_options["name"])
        return host

    async def end_child(self, child: str, timeout: float) -> CleanupReport:
        """End every remaining host of a child, and remove its placement group."""
        hosts = [host for host in self._hosts.values() if host.child == child]
        report = await self._end_all(hosts, timeout)
        await attempt(f"placement group of {child}", self._placement_groups.remove(child))
        return report

    async def close(self, timeout: float = 30.0) -> None:
        """End every remaining host, the agents and the placement groups. A failure of one skips no other."""
        await self._end_all(list(self._hosts.values()), timeout)
        for host in tuple(self._ended):
            await attempt(f"release of the host of {host.child}", host.release())
        self._ended.clear()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        await attempt("node watch", self.nodes.close())
        await attempt("node agents", self.agents.close())
        await attempt("placement groups", self._placement_groups.close())

    async def why_pending(self, options: ActorOptions) -> str:
        """Return why an actor with these options does not start, if the cluster's resources show it."""
        try:
            return explain_pending(options, await self.cluster.node_resources())
        except RayCallTimeout as timeout:
            return str(timeout)

    def forget(self, host: RayHost, *, verified: bool) -> None:
        """Drop a host that has ended. A host that may have left processes stays listed."""
        if verified and self._hosts.pop(host.key, None) is not None and not host.settled:
            self._ended.add(host)
            host.on_settled(lambda: self._ended.discard(host))

    async def _end_all(self, hosts: Sequence[RayHost], timeout: float) -> CleanupReport:
        ends = (attempt(f"end of the host of {host.child}", host.end(timeout)) for host in hosts)
        reports = await asyncio.gather(*ends)
        for host in hosts:
            self._hosts.pop(host.key, None)
            await attempt(f"release of the host of {host.child}", host.release())
        failed = CleanupReport((), (), verified=False)
        return merge_reports([report or failed for report in reports])
