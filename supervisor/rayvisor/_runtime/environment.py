"""Where children live: a Ray cluster, connected to when the first child needs it, or this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from rayvisor._backends.host.local import LocalHostFactory
from rayvisor.errors import SpecError
from rayvisor.specs import SupervisorSpec

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActorFactory
    from rayvisor._backends.ray.cluster import RayCluster
    from rayvisor._core.protocol.links import HostFactory

__all__ = ["KINDS", "Environment", "kinds"]

KINDS = frozenset({"actor", "adopt", "coroutine", "engine", "server", "supervisor"})
"""What can be carried."""


class Environment:
    """Opens what the children of a tree need.

    Parameters
    ----------
    address
        Of the Ray cluster; None: as `RayCluster.connect` finds it.
    ray_options
        More arguments for ``ray.init``.
    local
        Whether engines' hosts live in this process, and Ray is not used at all.
    """

    def __init__(self, address: str | None, ray_options: Mapping[str, Any] | None, *, local: bool) -> None:
        self._address = address
        self._ray_options = dict(ray_options or {})
        self._local = local
        self._cluster: RayCluster | None = None
        self._connecting = anyio.Lock()

    def check(self, spec: SupervisorSpec) -> None:
        """Raise SpecError if there are children that cannot live here."""
        for path, kind in _workers(spec):
            if kind not in KINDS:
                known = ", ".join(map(repr, sorted(KINDS)))
                raise SpecError(f"children[{path!r}].start.kind", kind, f"must be one of {known}")
        if self._local and kinds(spec) & {"actor", "adopt"}:
            raise SpecError("local", True, "cannot go with actor children: they live on Ray only")  # noqa: FBT003

    async def hosts(self) -> HostFactory:
        """Open the place for engines' hosts."""
        if self._local:
            return LocalHostFactory()
        # Imported here: a tree without engines or actors does not need Ray, nor wait for its import.
        from rayvisor._backends.ray.host_factory import RayHostFactory

        return RayHostFactory(await self._connect())

    async def actors(self) -> UserActorFactory:
        """Open the place for users' actors."""
        from rayvisor._backends.ray.actors import UserActorFactory

        return UserActorFactory(await self._connect())

    def gpus(self, arguments: Mapping[str, Any]) -> float:
        """How many GPUs an engine with these arguments needs."""
        if self._local:
            return 0.0
        from rayvisor._backends.ray.options import engine_gpus

        return engine_gpus(arguments)

    async def close(self) -> None:
        """Let go of the cluster."""
        if self._cluster is not None:
            await self._cluster.close()

    async def _connect(self) -> RayCluster:
        async with self._connecting:
            if self._cluster is None:
                from rayvisor._backends.ray.cluster import RayCluster

                self._cluster = await RayCluster.connect(self._address, options=self._ray_options or None)
            return self._cluster


def kinds(spec: SupervisorSpec) -> set[str]:
    """Kinds of backends that a tree needs."""
    return {kind for _, kind in _workers(spec)}


def _workers(spec: SupervisorSpec, above: str = "") -> Iterator[tuple[str, str]]:
    """Path and kind of everything that a backend carries."""
    for child in spec.children:
        path = f"{above}{child.id}"
        if isinstance(child.start, SupervisorSpec):
            yield from _workers(child.start, f"{path}/")
        else:
            yield path, child.start.kind
