"""A running tree as data, as `Supervisor.status` returns it and ``rayvisor status`` prints it.

    node = sup.status()
    for child in node.children:
        print(child.path, child.state, child.leaf, child.fault)

In a notebook a node is shown as a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from statecharts import Tree, render_tree

__all__ = ["ChildKind", "LastFault", "Node", "Requests", "Restarts"]


class ChildKind(StrEnum):
    """The kind of a child: of its start spec, of its node in a status, and in JSON."""

    ACTOR = "actor"
    """A Ray actor of the user's class."""
    ADOPT = "adopt"
    """A Ray actor that was created elsewhere."""
    COROUTINE = "coroutine"
    """An async function in the supervisor's process."""
    ENGINE = "engine"
    """An engine of a pool."""
    SERVER = "server"
    """An OpenAI-compatible server process."""
    SUPERVISOR = "supervisor"
    """A supervisor with children of its own."""
    ENGINE_POOL = "engine_pool"
    """The supervisor of a pool's engines. In a status only: its start spec is an `EnginePoolSpec`."""


ENGINE_KINDS: Final = frozenset({ChildKind.ENGINE, ChildKind.SERVER})
"""Children that follow the chart of an engine."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """Restarts in a supervisor's window."""

    used: int
    intensity: int
    period: float


@dataclass(frozen=True, slots=True)
class LastFault:
    """The fault that ended the previous incarnation."""

    root: str
    fault_class: str
    incarnation: int
    age: float
    """Seconds since the fault."""
    log_file: str = ""


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a pool, or those that an engine has in flight."""

    waiting: int
    in_flight: int
    finished: int
    failed: int
    tokens: int = 0
    """Tokens delivered so far; counted for pools only."""
    replayed: int = 0
    """How often a request in flight lost its engine and continued on another; counted for pools only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A child, or the root (its path is empty), with all below it.

    ``uptime`` is in seconds; None while it is not up. ``epoch`` distinguishes the host processes that an
    engine has had; None if there is none.
    """

    path: str
    kind: str
    """A `ChildKind`: ``supervisor``, ``engine_pool``, ``engine``, ``actor``, ``coroutine``, ..."""
    state: str
    """State in its chart; of the root ``DOWN``, ``STARTING``, ``RUNNING`` or ``STOPPING``."""
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
    """URL of a server while it is up."""
    children: tuple[Node, ...] = ()

    def tree(self, name: str = "tree") -> Tree:
        """Return the tree that ``statecharts`` draws, each node with its state.

        Parameters
        ----------
        name
            Name of the root, whose path is empty.

        Returns
        -------
        Tree
            For [`render_tree`][statecharts.render_tree]; a notebook shows it.

        Examples
        --------
        >>> node = Node(path="", kind=ChildKind.SUPERVISOR, state="RUNNING", leaf="")
        >>> node.tree().state
        'RUNNING'
        """
        facts = [("kind", self.kind)]
        if self.incarnation:
            facts.append(("incarnation", str(self.incarnation)))
        hidden = [hold for hold in self.holds if hold != self.leaf]
        if hidden:
            facts.append(("holds", ", ".join(hidden)))
        if self.restarts is not None:
            used = f"{self.restarts.used} of {self.restarts.intensity} in {self.restarts.period:g} s"
            facts.append(("restarts", used))
        if self.requests is not None:
            facts.append(("in flight", str(self.requests.in_flight)))
        if self.fault is not None:
            facts.append(("last fault", self.fault.root))
        place = f"{self.state}.{self.leaf}" if self.leaf else self.state
        children = tuple(child.tree() for child in self.children)
        return Tree(self.path or name, tuple(facts), children, place)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002 - the notebook's protocol
        return {"image/svg+xml": self._repr_svg_(), "text/plain": repr(self)}

    def _repr_svg_(self) -> str:
        return render_tree(self.tree(), "svg")


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes below it, in start order."""
    yield node
    for child in node.children:
        yield from walk(child)


_FAULTY = frozenset({"SUSPECT", "FAULTED", "RETRYING"})


def is_up(state: str) -> bool:
    """Whether a child in this state of its chart has an incarnation that is up; a paused one is."""
    return state == "ALIVE" or state == "PAUSED"  # noqa: PLR1714 - twice as fast as a set, on a hot path


def is_well(place: str) -> bool:
    """Whether a child at this place (``ALIVE.SERVING``) is up and has no fault; it may be paused."""
    state, _, leaf = place.rpartition(".")
    return is_up(state or leaf) and leaf not in _FAULTY


def chart_of(node: Node) -> str:
    """Return the name of the chart that a child follows; the root follows none, and has ``""``."""
    return "engine" if node.kind in ENGINE_KINDS else "actor" if node.path else ""
