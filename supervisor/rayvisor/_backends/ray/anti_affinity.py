"""On which nodes hosts are, for those that are not to be on the same ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout

__all__ = ["Neighbours"]

SECONDS = 10.0
"""So long a host waits to be made until it is known where the others are: some may have no room yet."""


class Neighbours:
    """The nodes of the hosts of one place.

    Parameters
    ----------
    cluster
        The connection.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._nodes: dict[str, asyncio.Future[str]] = {}

    def begin(self, child: str) -> None:
        """A child's host is about to be made: where its former one was does not count any more."""
        self._nodes[child] = asyncio.get_running_loop().create_future()

    def is_on(self, child: str, node_id: str) -> None:
        """A child's host is on this node; empty: it has gone."""
        node = self._nodes.get(child)
        if node is None:
            return
        if node_id and not node.done():
            node.set_result(node_id)
        elif not node_id and node.done():  # else it is the next one's, which is under way
            del self._nodes[child]

    async def nodes(self, child: str, siblings: Sequence[str]) -> list[str]:
        """On which nodes some siblings of a child are, by their names; none where there is one node only.

        Waits for hosts that were begun before the child's own, so that no two wait for each other.
        """
        above = child.rpartition("/")[0]
        paths = [f"{above}/{name}" if above else name for name in siblings]
        begun = [self._nodes[path] for path in paths if path in self._nodes]
        if not begun or not await self._several():
            return []
        await asyncio.wait(begun, timeout=SECONDS)
        return sorted({node.result() for node in begun if node.done()})

    async def _several(self) -> bool:
        try:
            return sum((await self._cluster.nodes()).values()) > 1
        except RayCallTimeout:
            return False  # to be apart is a wish, not a condition
