"""The place where children run: a Ray cluster, connected to at the first use, or this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from rayvisor._backends.host.local import LocalHostFactory
from rayvisor._core.paths import join
from rayvisor.errors import SpecError
from rayvisor.specs import SupervisorSpec
from rayvisor.status import ChildKind
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActorFactory
    from rayvisor._backends.ray.cluster import RayCluster
    from rayvisor._core.protocol.links import HostFactory

__all__ = ["KINDS", "Environment", "kinds"]

KINDS = frozenset(ChildKind) - {ChildKind.ENGINE_POOL}
"""The kinds that a backend runs."""


class Environment:
    """Opens the Ray cluster, or the local host factory, that the children of a tree need.

    Parameters
    ----------
    address
        Of the Ray cluster; None: the one that `RayCluster.connect` finds.
    ray_options
        More arguments for ``ray.init``.
    local
        Whether engines' hosts run in this process, and Ray is not used at all.
    timeouts
        Timeouts of what is opened.
    """

    def __init__(
        self,
        address: str | None,
        ray_options: Mapping[str, Any] | None,
        *,
        local: bool,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._address = address
        self._ray_options = dict(ray_options or {})
        self._local = local
        self._timeouts = timeouts
        self._cluster: RayCluster | None = None
        self._connecting = anyio.Lock()

    def check(self, spec: SupervisorSpec) -> None:
        """Raise SpecError if there are children that cannot run here."""
        for path, kind in _workers(spec):
            if kind not in KINDS:
                known = ", ".join(repr(str(each)) for each in sorted(KINDS))
                raise SpecError(f"children[{path!r}].start.kind", kind, f"must be one of {known}")
        if self._local and kinds(spec) & {ChildKind.ACTOR, ChildKind.ADOPT}:
            raise SpecError("local", self._local, "cannot go with actor children: they run on Ray only")

    async def hosts(self) -> HostFactory:
        """Return the factory of engines' hosts."""
        if self._local:
            return LocalHostFactory(self._timeouts)
        # Imported here: a tree without engines or actors needs no Ray, and does not wait for its import.
        from rayvisor._backends.ray.host_factory import RayHostFactory

        return RayHostFactory(await self._connect(), timeouts=self._timeouts)

    async def actors(self) -> UserActorFactory:
        """Return the factory of users' actors."""
        from rayvisor._backends.ray.actors import UserActorFactory

        return UserActorFactory(await self._connect(), timeouts=self._timeouts.ray)

    def gpus(self, arguments: Mapping[str, Any]) -> float:
        """Return how many GPUs an engine with these arguments needs."""
        if self._local:
            return 0.0
        from rayvisor._backends.ray.options import engine_gpus

        return engine_gpus(arguments)

    async def close(self) -> None:
        """Disconnect from the cluster."""
        if self._cluster is not None:
            await self._cluster.close()

    async def _connect(self) -> RayCluster:
        async with self._connecting:
            if self._cluster is None:
                from rayvisor._backends.ray.cluster import RayCluster

                self._cluster = await RayCluster.connect(
                    self._address, options=self._ray_options or None, timeouts=self._timeouts
                )
            return self._cluster


def kinds(spec: SupervisorSpec) -> set[str]:
    """Return the kinds of backends that a tree needs."""
    return {kind for _, kind in _workers(spec)}


def _workers(spec: SupervisorSpec, parent: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and kind of every child that a backend runs."""
    for child in spec.children:
        path = join(parent, child.id)
        if isinstance(child.start, SupervisorSpec):
            yield from _workers(child.start, path)
        else:
            yield path, child.start.kind
