"""The last known state of a tree, and of the connection to it. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayvisor._core.paths import contains
from rayvisor._edges.live.text import escaped, escaped_form

__all__ = ["TreeState", "Update"]

FAULTS_KEPT = 100
FIGURES = ("rate", "in_flight", "waiting", "replayed", "finished", "failed")

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """A message to a follower of a tree.

    Parameters
    ----------
    kind
        ``state``: something has changed; ``over``: the tree has ended; ``lost``: the connection is lost;
        ``there``: the tree answers again, and nothing has changed.
    data
        Content of the message.
    why
        Reason of ``lost``.
    """

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


class TreeState:
    """The state of a tree after the last update.

    Parameters
    ----------
    path
        Restricts the view to this child and its descendants; empty for the whole tree.
    clock
        Returns the seconds since the epoch.
    """

    def __init__(self, path: str = "", clock: Callable[[], float] = time.time) -> None:
        self.path = escaped(path)
        self._clock = clock
        self._ahead = 0.0
        self._nodes: dict[str, Node] = {}
        self._order: list[str] = []
        self._faults: dict[int, Node] = {}
        self.link = "connecting"
        """``connecting``, ``live``, ``lost`` or ``over``."""
        self.why = ""
        """Why the connection is lost."""
        self.since = clock()
        """Time of the last change of ``link``."""
        self.begun = 0
        """Number of complete states received; each replaces the one before."""

    @property
    def now(self) -> float:
        """The time on the tree's clock; without a connection, the time at which the tree was last seen."""
        disconnected = self.link in {"lost", "over"}
        return (self.since if disconnected else self._clock()) + self._ahead

    @property
    def root(self) -> Node | None:
        """The root node."""
        return self._nodes.get("")

    @property
    def nodes(self) -> list[Node]:
        """The nodes in view, in start order, the root first."""
        return [self._nodes[path] for path in self._order if contains(self.path, path)]

    @property
    def children(self) -> list[str]:
        """The paths of all children."""
        return [path for path in self._order if path]

    @property
    def faults(self) -> list[Node]:
        """The faults in view, oldest first."""
        return [fault for fault in self._faults.values() if contains(self.path, fault["child"])]

    @property
    def is_empty(self) -> bool:
        """Whether no state has been received yet."""
        return not self._order

    def has_lost_path(self) -> bool:
        """Return whether the requested path is not in the tree."""
        return bool(self.path) and bool(self._order) and self.path not in self._nodes

    def figures(self) -> dict[str, float] | None:
        """Return the request figures summed over all pools; None if there is no pool."""
        pools = [
            node["requests"] for node in self.nodes if node["kind"] == "engine_pool" and "requests" in node
        ]
        if not pools:
            return None
        return {name: sum(pool.get(name) or 0 for pool in pools) for name in FIGURES}

    def take(self, update: Update) -> None:
        """Apply an update. Its texts are escaped, so that nothing in them can control the terminal."""
        update = Update(update.kind, escaped_form(update.data), escaped(update.why))
        if update.kind == "state":
            self._state(update.data)
            self._become("live")
        elif update.kind == "there":
            self._become("live" if self._order else self.link)
        else:
            self.why = update.why
            # A tree that has announced its end stays over when the connection is lost afterwards.
            self._become("over" if self.link == "over" else update.kind)

    def _become(self, link: str) -> None:
        if link != self.link:
            self.link, self.since = link, self._clock()

    def _state(self, data: Mapping[str, Any]) -> None:
        self._ahead = data["now"] - self._clock()
        if data["full"]:
            self._nodes, self._order, self._faults = {}, [], {}
            self.begun += 1
        self._nodes |= {node["path"]: node for node in data["nodes"]}
        if "order" in data:
            self._order = list(data["order"])
            self._nodes = {path: self._nodes[path] for path in self._order}
        self._faults |= {fault["id"]: fault for fault in data["faults"]}
        for number in sorted(self._faults)[:-FAULTS_KEPT]:
            del self._faults[number]
