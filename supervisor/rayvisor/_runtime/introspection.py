"""Reads a running tree: its status, its engines and the names under which children are counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rayvisor._runtime.snapshot import Facts, node_of
from rayvisor.errors import UnknownChildError
from rayvisor.status import Node

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import EngineInfo
    from rayvisor._runtime.session import Session

__all__ = ["counted_name", "engine_info", "status"]


def status(session: Session, path: str) -> Node:
    """Return the tree below ``path`` as plain data; raise UnknownChildError if there is no such child."""
    now = time.monotonic()

    def stats(pool: str) -> Any:
        scheduler = session.pools.get(pool)
        return None if scheduler is None else scheduler.stats()

    engines = session.engines
    facts = Facts(epoch=engines.epoch, processes=engines.processes, stats=stats, url=engines.url)
    core = session.runtime.core
    node = node_of(core, facts, path, now, session.began)
    if node is None:
        raise UnknownChildError(path, tuple(core.children))
    return node


def engine_info(session: Session, path: str) -> EngineInfo | None:
    """Return what the engine at ``path`` reported when it came up; None while none is up there."""
    child = session.runtime.core.children.get(path)
    return None if child is None else session.engines.info(path, child.incarnation)


def counted_name(session: Session, path: str) -> str:
    """Return the name under which a child is counted: ``workers/*`` for all instances of a template."""
    supervisors, above, name = session.runtime.core.supervisors, "", ""
    for part in path.split("/"):
        supervisor = supervisors.get(above)
        one = "*" if supervisor is not None and supervisor.simple else part
        above, name = (f"{above}/{part}", f"{name}/{one}") if above else (part, one)
    return name
