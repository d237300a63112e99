"""Paths of children: the ids from the root down, joined by ``/``; the root itself is the empty path.

An id holds no ``/``, so that the text of a path is enough to tell parents and descendants.

    >>> join(join("", "pools"), "rollout")
    'pools/rollout'
    >>> split("pools/rollout")
    ('pools', 'rollout')
    >>> contains("pools", "pools/rollout"), contains("pool", "pools/rollout")
    (True, False)
    >>> list(ancestors("pools/rollout/e0"))
    ['pools/rollout', 'pools', '']
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["ancestors", "contains", "join", "split"]


def join(parent: str, id: str) -> str:
    """Return the path of the child with this id under ``parent``."""
    return f"{parent}/{id}" if parent else id


def split(path: str) -> tuple[str, str]:
    """Return the parent's path and the child's own id; both are empty for the root."""
    parent, _, own = path.rpartition("/")
    return parent, own


def contains(root: str, path: str) -> bool:
    """Whether ``path`` is ``root`` or below it; the empty root contains every path."""
    return not root or path == root or path.startswith(f"{root}/")


def ancestors(path: str) -> Iterator[str]:
    """Yield the paths above ``path``, the nearest first and the root (empty) last; the root has none."""
    while path:
        path = path.rpartition("/")[0]
        yield path
