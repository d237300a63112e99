"""Trees of things that watch over each other, as pictures: a node, what is said of it, its children.

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

from statecharts._registry import TREES, register
from statecharts.errors import ChartError

__all__ = ["Tree", "TreeRenderer", "register_tree_renderer", "render_tree", "tree_formats"]


@dataclass(frozen=True, slots=True)
class Tree:
    """A node of a tree, with all below it. In a notebook it shows itself.

    Parameters
    ----------
    name
        What it is called; names need not be unique.
    facts
        What is said of it, in this order: name and value of each fact.
    children
        Below it, in their order.
    state
        The state that it is in, as ``"ALIVE.SERVING"``, where it runs: empty if not. Pictures have the
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
        """Walk through this node and all below it, each before its children."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002 - the notebook's protocol
        return {"image/svg+xml": self._repr_svg_(), "text/plain": f"<Tree {self.name!r}>"}

    def _repr_svg_(self) -> str:
        return render_tree(self, "svg")


TreeRenderer = Callable[[Tree], str]
"""Makes text of a tree: the same text for the same tree, ending with a newline."""


def tree_formats() -> tuple[str, ...]:
    """Name the formats there are for trees, in the order in which they were registered."""
    return tuple(TREES)


def register_tree_renderer(name: str, renderer: TreeRenderer) -> None:
    """Add a format for trees.

    Parameters
    ----------
    name
        What [`render_tree`][statecharts.render_tree] calls it.
    renderer
        Makes the text.

    Raises
    ------
    ValueError
        When the name is empty or taken.
    """
    register(TREES, name, renderer)


def render_tree(tree: Tree, format: str) -> str:  # noqa: A002 - the word that the command line uses, too
    """Render a tree.

    Parameters
    ----------
    tree
        Its root.
    format
        One of [`tree_formats`][statecharts.tree_formats]; ``"mermaid"``, ``"dot"``, ``"svg"``,
        ``"scxml"``, ``"table"`` (Markdown) and ``"json"`` are always there.

    Raises
    ------
    ChartError
        When there is no such format; it names those that there are.
    """
    renderer = TREES.get(format)
    if renderer is None:
        known = ", ".join(tree_formats())
        raise ChartError(
            tree.name, f"format {format!r}", "there is no renderer of trees for it", f"use one of {known}"
        )
    return renderer(tree)
