"""A running tree as data, read from the core. Pure: it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rayvisor.specs import EnginePoolSpec
from rayvisor.status import ENGINE_KINDS, ChildKind, LastFault, Node, Requests, Restarts, is_up

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import ProcessId
    from rayvisor._core.requests.stats import PoolStats
    from rayvisor._core.supervision.core import Core
    from rayvisor._core.supervision.nodes import Child, Supervisor

__all__ = ["ChildDetails", "kind_of", "node_of"]

_HOLDS = ("FAULTED", "STALE", "REQUESTED")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildDetails:
    """Looks up what the core does not know of a child; each function takes its path."""

    epoch: Callable[[str], int | None]
    processes: Callable[[str], list[tuple[str, ProcessId]]]
    stats: Callable[[str], PoolStats | None]
    in_flight: Callable[[str], int | None]
    url: Callable[[str], str]


def node_of(core: Core, details: ChildDetails, path: str, now: float, began: float) -> Node | None:
    """Return the node at ``path``; None if there is none.

    Parameters
    ----------
    core
        Holds the tree.
    details
        Looks up the rest.
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
            kind=ChildKind.SUPERVISOR,
            state=root.phase.name,
            leaf="",
            uptime=max(0.0, now - began) if root.active else None,
            restarts=_restarts(root, now),
            children=_below(root, details, now),
        )
    child = core.children.get(path)
    return None if child is None else _node(child, details, now)


def kind_of(child: Child) -> str:
    """Return the kind of a child: a `ChildKind`, unless its backend is a test's."""
    if child.spec.supervisor:
        is_pool = isinstance(child.spec.start, EnginePoolSpec)
        return ChildKind.ENGINE_POOL if is_pool else ChildKind.SUPERVISOR
    return str(getattr(child.spec.start, "kind", ""))


def _below(supervisor: Supervisor, details: ChildDetails, now: float) -> tuple[Node, ...]:
    return tuple(_node(child, details, now) for child in supervisor.children.values())


def _node(child: Child, details: ChildDetails, now: float) -> Node:
    where, kind, path = child.configuration, kind_of(child), child.path
    up = is_up(where.state) and child.up_since is not None
    node = Node(
        path=path,
        kind=kind,
        state=where.state,
        leaf=where.leaf,
        holds=tuple(hold for hold in _HOLDS if hold in where.flags),
        incarnation=child.incarnation,
        uptime=max(0.0, now - (child.up_since or now)) if up else None,
        restarts=None if child.subtree is None else _restarts(child.subtree, now),
        fault=_fault(child, now),
        requests=_requests(details.stats(path)) if kind == ChildKind.ENGINE_POOL else None,
        url=details.url(path) if up and kind == ChildKind.SERVER else "",
        children=() if child.subtree is None else _below(child.subtree, details, now),
    )
    if kind not in ENGINE_KINDS:
        return node
    in_flight = details.in_flight(path)
    processes = details.processes(path)
    return replace(
        node,
        epoch=details.epoch(path),
        requests=None if in_flight is None else Requests(0, in_flight, 0, 0),
        processes=tuple((role, process.pid, process.name) for role, process in processes),
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
