"""A mapping from paths of children to values that also finds what is below a path.

    >>> pools = PathMap[str]()
    >>> pools["a/llm"], pools["b"] = "first", "second"
    >>> list(pools.below("a")), list(pools.below(""))
    (['a/llm'], ['a/llm', 'b'])

Setting and deleting an entry costs time in proportion to the depth of its path, ``below`` in proportion to
the number of entries that it yields. The number of other children does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TypeVar

from rayvisor._core.paths import ancestors, split

__all__ = ["PathMap"]

V = TypeVar("V")


class PathMap(MutableMapping[str, V]):
    """Values by path, in order of insertion, indexed by parent."""

    __slots__ = ("_children", "_values")

    def __init__(self) -> None:
        self._values: dict[str, V] = {}
        # The paths directly below a path that are entries, or lead to entries.
        self._children: dict[str, dict[str, None]] = {}

    def __getitem__(self, path: str) -> V:
        return self._values[path]

    def __setitem__(self, path: str, value: V) -> None:
        if path not in self._values:
            self._link(path)
        self._values[path] = value

    def __delitem__(self, path: str) -> None:
        del self._values[path]
        self._unlink(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def below(self, root: str) -> Iterator[str]:
        """Yield the paths at or below ``root``, each before those below it.

        The map must not change meanwhile.
        """
        pending = [root]
        while pending:
            path = pending.pop()
            if path in self._values:
                yield path
            pending.extend(reversed(self._children.get(path, ())))

    def _link(self, path: str) -> None:
        for parent in ancestors(path):
            siblings = self._children.setdefault(parent, {})
            if path in siblings:
                return
            siblings[path] = None
            path = parent

    def _unlink(self, path: str) -> None:
        while path and path not in self._values and path not in self._children:
            parent, _ = split(path)
            siblings = self._children[parent]
            del siblings[path]
            if siblings:
                return
            del self._children[parent]
            path = parent
