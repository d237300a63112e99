"""Placement of a child's actors: options, node pins and placement groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayvisor._redaction import masked_repr

__all__ = ["ActorOptions", "NodePin", "PlacementOptions"]


@dataclass(frozen=True, slots=True)
class NodePin:
    """Pin a child to one node of the cluster: ``scheduling=`` of engine pools, groups, servers and actors.

    Parameters
    ----------
    node_id
        Ray's id of the node, as in ``ray.nodes()``.
    soft
        Whether to run elsewhere if that node is gone, or has no room. Otherwise the start waits until it
        times out.

    Examples
    --------
    >>> import rayvisor as rv
    >>> pool = rv.engine_pool("llm", engine_args={}, scheduling=rv.NodePin("ab" * 28, soft=True))
    """

    node_id: str
    soft: bool = False


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """A placement group of the child: created once, reused by all its incarnations, removed with it.

    ``placement=`` of engine pools, groups, servers and actors. Each child, so each engine of a pool, has one
    of its own. It is created again when one of its nodes is lost.

    Parameters
    ----------
    bundles
        The reserved resources, a mapping for each bundle: ``({"CPU": 1, "GPU": 1}, {"GPU": 1})``.
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
    """Resources and placement of an actor, passed through to Ray.

    A field that is None keeps Ray's default.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict)
    """Merged into the ``env_vars`` of ``runtime_env``; these take precedence."""
    scheduling: str | NodePin | None = None
    """``"DEFAULT"``, ``"SPREAD"`` or a `NodePin`; not together with ``placement``."""
    placement: PlacementOptions | None = None
    apart_from: tuple[str, ...] = ()
    """Siblings whose nodes it uses only if no other node has room."""

    def __repr__(self) -> str:
        return masked_repr(self)
