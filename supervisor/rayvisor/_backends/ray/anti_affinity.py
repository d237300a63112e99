"""Anti-affinity: the nodes that hosts are on, for hosts that are to be on other ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = ["AntiAffinity", "HostLocation"]


class HostLocation:
    """The node of one host, which is not known before the host has answered.

    Parameters
    ----------
    child
        Path of the host's child.
    """

    def __init__(self, child: str) -> None:
        self.child = child
        self.node: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Ray's id of the node; empty once the host has ended, or was never created."""
        self.ended = False

    def found(self, node_id: str) -> None:
        """Set the node. Setting it again has no effect."""
        if not self.node.done():
            self.node.set_result(node_id)

    def end(self) -> None:
        """Release the waiters: the host has ended, or could not be created."""
        self.ended = True
        self.found("")


class AntiAffinity:
    """The locations of the hosts of one factory.

    Parameters
    ----------
    cluster
        The connection.
    timeouts
        For the wait for the locations of other hosts.
    """

    def __init__(self, cluster: RayCluster, *, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray) -> None:
        self._cluster = cluster
        self._timeouts = timeouts
        self._locations: dict[str, HostLocation] = {}

    def begin(self, child: str) -> HostLocation:
        """Register a host that is about to be created, in place of the child's former one.

        The caller ends the location in every case, also when the creation fails.
        """
        self._locations = {name: each for name, each in self._locations.items() if not each.ended}
        location = self._locations[child] = HostLocation(child)
        return location

    async def nodes(self, child: str, siblings: Sequence[str]) -> list[str]:
        """Return the nodes of some of a child's siblings, given by name; empty in a cluster of one node.

        Wait, by default at most 10 s, for hosts that were begun before the child's own: no two hosts wait for
        each other.
        """
        parent = child.rpartition("/")[0]
        paths = [f"{parent}/{name}" if parent else name for name in siblings]
        found = [self._locations.get(path) for path in paths]
        locations = [location for location in found if location is not None and not location.ended]
        if not locations or not await self._has_several_nodes():
            return []
        await asyncio.wait([location.node for location in locations], timeout=self._timeouts.apart_from)
        known = {location.node.result() for location in locations if location.node.done()}
        return sorted(known - {""})

    async def _has_several_nodes(self) -> bool:
        try:
            return sum((await self._cluster.nodes()).values()) > 1
        except RayCallTimeout:
            return False  # anti-affinity is a preference, not a condition
