"""Where the actors of a child run: options, node pins and placement groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ActorOptions", "NodePin", "PlacementOptions"]


@dataclass(frozen=True, slots=True)
class NodePin:
    """Run on one node of the cluster: ``scheduling=`` of engine pools, groups, servers and actors.

    Parameters
    ----------
    node_id
        Ray's id of the node, as ``ray.nodes()`` has it.
    soft
        Run elsewhere if that node is gone, or has no room. Otherwise the start waits until its deadline.

    Examples
    --------
    >>> import rayvisor as rv
    >>> pool = rv.engine_pool("llm", engine_args={}, scheduling=rv.NodePin("ab" * 28, soft=True))
    """

    node_id: str
    soft: bool = False


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """A placement group of the child: made once, reused by each of its hosts, removed at its end.

    ``placement=`` of engine pools, groups, servers and actors. Each child, so each engine of a pool, has one
    of its own. It is made again when a node of it is lost.

    Parameters
    ----------
    bundles
        What is reserved, a mapping of resources for each bundle: ``({"CPU": 1, "GPU": 1}, {"GPU": 1})``.
        The child itself runs in the first one.
    strategy
        ``"PACK"``, ``"SPREAD"``, ``"STRICT_PACK"`` or ``"STRICT_SPREAD"``, with Ray's meaning.

    Examples
    --------
    >>> import rayvisor as rv
    >>> reserved = rv.PlacementOptions(({"CPU": 1, "GPU": 2},), strategy="STRICT_PACK")
    >>> pool = rv.engine_pool("llm", engine_args={"tensor_parallel_size": 2}, placement=reserved)
    """

    bundles: tuple[Mapping[str, float], ...]
    strategy: str = "PACK"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """What an actor asks of the cluster; passed through as it stands.

    A field that is None keeps the cluster's own default.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict)
    """Merged into the ``env_vars`` of ``runtime_env``; these win."""
    scheduling: str | NodePin | None = None
    """``"DEFAULT"``, ``"SPREAD"`` or a `NodePin`; not together with ``placement``."""
    placement: PlacementOptions | None = None
    apart_from: tuple[str, ...] = ()
    """Siblings on whose nodes it is to be only if there is no room on any other."""
