"""A running tree as data, read off the core. Pure: it looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayvisor.specs import EnginePoolSpec
from rayvisor.status import LastFault, Node, Requests, Restarts

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import ProcessId
    from rayvisor._core.requests.stats import PoolStats
    from rayvisor._core.supervision.core import Core
    from rayvisor._core.supervision.nodes import Child, Supervisor

__all__ = ["Facts", "node_of"]

_ENGINES = frozenset({"engine", "server"})
_UP = frozenset({"ALIVE", "PAUSED"})
_HOLDS = ("FAULTED", "STALE", "REQUESTED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known outside the core; each takes a path."""

    epoch: Callable[[str], int | None]
    processes: Callable[[str], list[tuple[str, ProcessId]]]
    stats: Callable[[str], PoolStats | None]
    url: Callable[[str], str]


def node_of(core: Core, facts: Facts, path: str, now: float, began: float) -> Node | None:
    """The node at ``path``; None if there is none.

    Parameters
    ----------
    core
        Holds the tree.
    facts
        What the core does not know.
    path
        Of the child; the root is the empty one.
    now
        Seconds on the core's clock.
    began
        When the tree began, on the same clock.
    """
    if not path:
        root = core.root
        return Node(
            path="",
            kind="supervisor",
            state=root.phase.name,
            leaf="",
            uptime=max(0.0, now - began) if root.active else None,
            restarts=_restarts(root, now),
            children=_below(root, facts, now),
        )
    child = core.children.get(path)
    return None if child is None else _node(child, facts, now)


def _below(supervisor: Supervisor, facts: Facts, now: float) -> tuple[Node, ...]:
    return tuple(_node(child, facts, now) for child in supervisor.children.values())


def _node(child: Child, facts: Facts, now: float) -> Node:
    where, start = child.configuration, child.spec.start
    kind = getattr(start, "kind", "")
    if child.spec.supervisor:
        kind = "engine_pool" if isinstance(start, EnginePoolSpec) else "supervisor"
    up = where.state in _UP and child.up_since is not None
    engine = kind in _ENGINES
    return Node(
        path=child.path,
        kind=kind,
        state=where.state,
        leaf=where.leaf,
        holds=tuple(hold for hold in _HOLDS if hold in where.flags),
        incarnation=child.incarnation,
        epoch=facts.epoch(child.path) if engine else None,
        uptime=max(0.0, now - (child.up_since or now)) if up else None,
        restarts=None if child.subtree is None else _restarts(child.subtree, now),
        fault=_fault(child, now),
        requests=_requests(facts.stats(child.path))
        if kind == "engine_pool"
        else _in_flight(child, facts, engine),
        processes=tuple((role, process.pid, process.name) for role, process in facts.processes(child.path))
        if engine
        else (),
        url=facts.url(child.path) if up and kind == "server" else "",
        children=() if child.subtree is None else _below(child.subtree, facts, now),
    )


def _restarts(supervisor: Supervisor, now: float) -> Restarts:
    spec = supervisor.spec
    return Restarts(supervisor.window.count(now, spec.period), spec.intensity, spec.period)


def _fault(child: Child, now: float) -> LastFault | None:
    fault = None if child.exit is None else child.exit.fault
    if fault is None:
        return None
    return LastFault(
        str(fault.root), str(fault.fault_class), fault.incarnation, max(0.0, now - fault.at), fault.log_file
    )


def _requests(stats: PoolStats | None) -> Requests | None:
    if stats is None:
        return None
    waiting = stats.waiting + stats.returning + stats.suspects + stats.parked
    return Requests(waiting, stats.in_flight, stats.finished, stats.failed, stats.tokens, stats.moved)


def _in_flight(child: Child, facts: Facts, engine: bool) -> Requests | None:  # noqa: FBT001 - one caller
    stats = facts.stats(child.path.rpartition("/")[0]) if engine else None
    for each in () if stats is None else stats.engines:
        if each.child == child.path:
            return Requests(0, each.in_flight, 0, 0)
    return None
