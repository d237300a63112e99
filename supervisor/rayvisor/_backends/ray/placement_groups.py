"""Placement groups of children: created once, reused by the next incarnations, removed at the end."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from rayvisor._backends.ray.calls import Lane
from rayvisor._backends.ray.cleanup import attempt, remove_group
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._log import get_logger
from rayvisor.specs import PlacementOptions

__all__ = ["PlacementGroups"]

log = get_logger("rayvisor.ray")


class PlacementGroups:
    """The placement groups of one connection's children.

    Parameters
    ----------
    cluster
        The connection.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._groups: dict[str, tuple[PlacementOptions, Any]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, child: str, wanted: PlacementOptions | None) -> Any:
        """Return the child's group, which is created if it does not exist; None if the child wants none."""
        async with self._locks.setdefault(child, asyncio.Lock()):
            held = self._groups.get(child)
            if held is not None:
                if held[0] == wanted and await self._exists(held[1]):
                    return held[1]
                await self._remove(child)
            if wanted is None:
                return None
            group = await self._create(child, wanted)
            self._groups[child] = (wanted, group)
            return group

    async def remove(self, child: str) -> None:
        """Remove a child's group. The actors in it have been ended before."""
        async with self._locks.setdefault(child, asyncio.Lock()):
            await self._remove(child)
        self._locks.pop(child, None)

    async def close(self) -> None:
        """Remove all groups. A failure of one skips no other."""
        groups = tuple(self._groups)
        await asyncio.gather(
            *(attempt(f"placement group of {child}", self.remove(child)) for child in groups)
        )

    async def _create(self, child: str, wanted: PlacementOptions) -> Any:
        def create() -> Any:
            from ray.util.placement_group import placement_group

            return placement_group([dict(bundle) for bundle in wanted.bundles], strategy=wanted.strategy)

        group = await self._cluster.call(
            f"placement group of {child}", create, undo=remove_group, lane=Lane.CREATE
        )
        log.info("placement.created", child=child, group=group.id.hex())
        return group

    async def _exists(self, group: Any) -> bool:
        def look() -> bool:
            from ray.util.placement_group import placement_group_table

            # Ray itself moves a group whose node is lost to another one: only a removed one is created again.
            return placement_group_table(group).get("state") not in {None, "REMOVED"}

        return await self._cluster.call("placement group table", look)

    async def _remove(self, child: str) -> None:
        held = self._groups.pop(child, None)
        if held is None:
            return

        remove = partial(remove_group, held[1])
        await self._cluster.call(f"removal of the placement group of {child}", remove)
        log.info("placement.removed", child=child, group=held[1].id.hex())
