"""Reads a running tree: its status, its engines, and the names under which children are counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rayvisor._core.paths import join
from rayvisor._runtime.snapshot import ChildDetails, node_of
from rayvisor.errors import UnknownChildError
from rayvisor.status import Node

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import EngineInfo
    from rayvisor._core.requests.stats import PoolStats
    from rayvisor._runtime.session import Session

__all__ = ["counted_name", "engine_info", "status"]


def status(session: Session, path: str) -> Node:
    """Return the tree below ``path`` as plain data; raise UnknownChildError if there is no such child."""
    pools, engines, core = session.pools, session.engines, session.runtime.core

    def stats(path: str) -> PoolStats | None:
        pool = pools.get(path)
        return None if pool is None else pool.stats()

    details = ChildDetails(
        epoch=engines.epoch,
        processes=engines.processes,
        stats=stats,
        in_flight=pools.in_flight,
        url=engines.url,
    )
    node = node_of(core, details, path, time.monotonic(), session.began)
    if node is None:
        raise UnknownChildError(path, tuple(core.children))
    return node


def engine_info(session: Session, path: str) -> EngineInfo | None:
    """Return what the engine at ``path`` reported when it came up; None while none is up there."""
    child = session.runtime.core.children.get(path)
    return None if child is None else session.engines.info(path, child.incarnation)


def counted_name(session: Session, path: str) -> str:
    """Return the name under which a child is counted: ``workers/*`` for all instances of a template."""
    supervisors, parent, name = session.runtime.core.supervisors, "", ""
    for part in path.split("/"):
        supervisor = supervisors.get(parent)
        own = "*" if supervisor is not None and supervisor.simple else part
        parent, name = join(parent, part), join(name, own)
    return name
