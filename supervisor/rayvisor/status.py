"""A running tree as data: what `Supervisor.status` gives, and ``rayvisor status`` shows.

node = sup.status()
for child in node.children:
    print(child.path, child.state, child.leaf, child.fault)
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LastFault", "Node", "Requests", "Restarts"]


@dataclass(frozen=True, slots=True)
class Restarts:
    """Restarts in a supervisor's window."""

    used: int
    intensity: int
    period: float


@dataclass(frozen=True, slots=True)
class LastFault:
    """What ended the incarnation before."""

    root: str
    fault_class: str
    incarnation: int
    age: float
    """Seconds since."""
    log_file: str = ""


@dataclass(frozen=True, slots=True)
class Requests:
    """What a pool has to do, or an engine has in flight."""

    waiting: int
    in_flight: int
    finished: int
    failed: int
    tokens: int = 0
    """Delivered so far; counted for pools."""
    replayed: int = 0
    """How often a request in flight lost its engine and went on elsewhere; counted for pools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A child, or the root (its path is empty), with all below it.

    ``uptime`` is in seconds; None while it is not up. ``epoch`` tells one host process of an engine from the
    next; None where there is none.
    """

    path: str
    kind: str
    """``supervisor``, ``engine_pool``, ``engine``, ``actor``, ``coroutine``, ..."""
    state: str
    """Of its chart; of the root: ``DOWN``, ``STARTING``, ``RUNNING`` or ``STOPPING``."""
    leaf: str
    holds: tuple[str, ...] = ()
    incarnation: int = 0
    epoch: int | None = None
    uptime: float | None = None
    restarts: Restarts | None = None
    fault: LastFault | None = None
    requests: Requests | None = None
    processes: tuple[tuple[str, int, str], ...] = ()
    """Role (``host``, ``engine``), pid and name of each."""
    url: str = ""
    """Where a server is while it is up."""
    children: tuple[Node, ...] = ()
