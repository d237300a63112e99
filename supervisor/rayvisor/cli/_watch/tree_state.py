"""What is tree of a tree: the last state of each part, and whether the tree is there. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TreeState", "Update"]

FAULTS_KEPT = 100
FIGURES = ("rate", "in_flight", "waiting", "replayed", "finished", "failed")

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """Something that one who follows a tree learns.

    Parameters
    ----------
    kind
        ``state``: what has changed; ``over``: the tree has ended; ``lost``: nobody answers; ``there``: it
        answers again, and nothing has changed.
    data
        Of the message.
    why
        Of ``lost``.
    """

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


class TreeState:
    """The tree as it was update last.

    Parameters
    ----------
    path
        Only this child, and what is below it, is looked at; empty: all.
    clock
        Seconds since the epoch.
    """

    def __init__(self, path: str = "", clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._ahead = 0.0
        self._nodes: dict[str, Node] = {}
        self._order: list[str] = []
        self._faults: dict[int, Node] = {}
        self.link = "connecting"
        """``connecting``, ``live``, ``lost`` or ``over``."""
        self.why = ""
        """Why it is lost."""
        self.since = clock()
        """When the link became what it is."""
        self.begun = 0
        """How often everything was update anew: what was tree before is of another tree, or too old."""

    @property
    def now(self) -> float:
        """The time on the tree's own clock; while it is not seen, that at which it was seen last."""
        stands = self.link in {"lost", "over"}
        return (self.since if stands else self._clock()) + self._ahead

    @property
    def root(self) -> Node | None:
        """The whole tree's node."""
        return self._nodes.get("")

    @property
    def nodes(self) -> list[Node]:
        """What is looked at, in start order; a whole tree's root first."""
        return [self._nodes[path] for path in self._order if self._is_below(path)]

    @property
    def children(self) -> list[str]:
        """The paths that there are."""
        return [path for path in self._order if path]

    @property
    def faults(self) -> list[Node]:
        """Those of what is looked at, oldest first."""
        return [fault for fault in self._faults.values() if self._is_below(fault["child"])]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been update of yet."""
        return not self._order

    def has_lost_path(self) -> bool:
        """Whether what is to be looked at is not in the tree."""
        return bool(self.path) and bool(self._order) and self.path not in self._nodes

    def figures(self) -> dict[str, float] | None:
        """Requests of all pools together; None where there is no pool."""
        pools = [
            node["requests"] for node in self.nodes if node["kind"] == "engine_pool" and "requests" in node
        ]
        if not pools:
            return None
        return {name: sum(pool.get(name) or 0 for pool in pools) for name in FIGURES}

    def take(self, update: Update) -> None:
        """Learn something."""
        if update.kind == "state":
            self._state(update.data)
            self._become("live")
        elif update.kind == "there":
            self._become("live" if self._order else self.link)
        else:
            self.why = update.why
            # A tree that has said that it ends is over, also when nobody answers then.
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

    def _is_below(self, path: str) -> bool:
        return not self.path or path == self.path or path.startswith(f"{self.path}/")

    def above(self, path: str) -> Iterator[str]:
        """The paths of those who watch over a child, the nearest first."""
        while path:
            path = path.rpartition("/")[0]
            yield path
