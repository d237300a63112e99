"""Supervision trees as data for pictures: each node has a name, a state, facts and children.

>>> tree = Tree("tree", (("strategy", "one_for_one"),), (Tree("llm", state="ALIVE.SERVING"),))
>>> print(render_tree(tree, "mermaid"))
flowchart LR
    n0["tree<br/>strategy: one_for_one"]
    n1["llm<br/>ALIVE.SERVING"]
    n0 --> n1
<BLANKLINE>
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from statecharts._registry import TREE_RENDERERS, register
from statecharts.errors import ChartError

__all__ = ["Tree", "TreeRenderer", "register_tree_renderer", "render_tree", "tree_formats"]


@dataclass(frozen=True, slots=True)
class Tree:
    """A node of a tree with its whole subtree. A notebook displays it as a picture.

    Parameters
    ----------
    name
        The displayed name; names need not be unique.
    facts
        Name and value of each displayed fact, in display order.
    children
        The child nodes, in their order.
    state
        The current state, for example ``"ALIVE.SERVING"``; empty if it does not run. Pictures use the
        colours of the states of ``statecharts.lifecycles``.

    Examples
    --------
    >>> tree = Tree("side", children=(Tree("ticker"),))
    >>> [node.name for node in tree.nodes()]
    ['side', 'ticker']
    """

    name: str
    facts: tuple[tuple[str, str], ...] = ()
    children: tuple[Tree, ...] = ()
    state: str = ""

    def nodes(self) -> Iterator[Tree]:
        """Iterate over this node and all its descendants, each before its children."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"image/svg+xml": self._repr_svg_(), "text/plain": f"<Tree {self.name!r}>"}

    def _repr_svg_(self) -> str:
        return render_tree(self, "svg")


TreeRenderer = Callable[[Tree], str]
"""Turns a tree into text: deterministic, ending with a newline."""


def tree_formats() -> tuple[str, ...]:
    """Return the names of the formats for trees, in the order of their registration."""
    return tuple(TREE_RENDERERS)


def register_tree_renderer(name: str, renderer: TreeRenderer) -> None:
    """Add a format for trees.

    Parameters
    ----------
    name
        The name that [`render_tree`][statecharts.render_tree] takes.
    renderer
        Makes the text.

    Raises
    ------
    ValueError
        If the name is empty or already registered.
    """
    register(TREE_RENDERERS, name, renderer)


def render_tree(tree: Tree, format: str) -> str:
    """Render a tree.

    Parameters
    ----------
    tree
        The root node.
    format
        One of [`tree_formats`][statecharts.tree_formats]; ``"mermaid"``, ``"dot"``, ``"svg"``,
        ``"scxml"``, ``"table"`` (Markdown) and ``"json"`` are always available.

    Raises
    ------
    ChartError
        If the format does not exist; the message lists the known formats.
    """
    renderer = TREE_RENDERERS.get(format)
    if renderer is None:
        known = ", ".join(tree_formats())
        raise ChartError(tree.name, f"format {format!r}", "has no renderer for trees", f"use one of {known}")
    return renderer(tree)
