"""The JSON forms of trees, records and vLLM's fault-tolerance status. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from rayvisor.status import LastFault, Node, Requests, Restarts, walk

if TYPE_CHECKING:
    from rayvisor.records import Record

__all__ = ["fault_tolerance_status", "node_from", "plain", "record_form", "tree_form"]

_ENGINES = frozenset({"engine", "server"})
_UNHEALTHY = frozenset({"FAULTED", "RETRYING", "SUSPECT"})


def tree_form(node: Node) -> dict[str, Any]:
    """Return the form of a node with its whole subtree."""
    form: dict[str, Any] = plain(asdict(node))
    return form


def node_from(form: Mapping[str, Any]) -> Node:
    """Return the node of a form made by `tree_form`; unknown fields are ignored."""
    known = {each.name: form[each.name] for each in fields(Node) if each.name in form}
    for name, kind in (("restarts", Restarts), ("fault", LastFault), ("requests", Requests)):
        if known.get(name) is not None:
            known[name] = kind(**{each.name: known[name][each.name] for each in fields(kind)})
    known["holds"] = tuple(known.get("holds", ()))
    known["processes"] = tuple((role, pid, name) for role, pid, name in known.get("processes", ()))
    known["children"] = tuple(node_from(child) for child in form["children"])
    return Node(**known)


def record_form(record: Record, wall: float) -> dict[str, Any]:
    """Return the form of a record, with its type as ``record`` and ``time`` in seconds since the epoch.

    Parameters
    ----------
    record
        The record; its ``at`` is on the monotonic clock.
    wall
        Offset, in seconds, from the monotonic clock to the time since the epoch.
    """
    form: dict[str, Any] = plain(asdict(record))
    fault = getattr(record, "fault", None)
    if fault is not None:
        form["fault"]["root"] = str(fault.root)
    return {"record": type(record).__name__, "time": round(record.at + wall, 6), **form}


def plain(value: Any) -> Any:
    """Convert a value to JSON types; infinite numbers and NaN become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return str(value) if isinstance(value, str) else value
    return str(value)


def fault_tolerance_status(root: Node) -> dict[str, Any]:
    """Return the engines of a tree in the format of vLLM's ``GET /fault_tolerance/status``.

    An engine that is up is healthy, even while it is paused, on standby, or has stale weights. An engine that
    reports a fault, recovers in place or is unreachable is unhealthy. One that is down or starting is dead.
    """
    engines = []
    for number, node in enumerate(each for each in walk(root) if each.kind in _ENGINES):
        if node.state not in {"ALIVE", "PAUSED"}:
            status = "dead"
        elif node.leaf in _UNHEALTHY or "FAULTED" in node.holds:
            status = "unhealthy"
        else:
            status = "healthy"
        form: dict[str, Any] = {"id": number, "status": status, "path": node.path}
        if status != "healthy" and node.fault is not None:
            form["fault_info"] = node.fault.root
        engines.append(form)
    return {"schema_version": 1, "total_engines": len(engines), "engines": engines}
