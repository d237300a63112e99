"""The paths that are paused and not resumed yet."""

from __future__ import annotations

from rayvisor._core.paths import ancestors

__all__ = ["PausedPaths"]


class PausedPaths:
    """A set of paths that can drop everything below a path without a look at all the others.

    A pause outlives the supervisor above and its children, so a path may be in here while no child has it.
    """

    __slots__ = ("_below", "_paths")

    def __init__(self) -> None:
        self._paths: set[str] = set()
        # For a path, those one level below it that are paused or have paused paths below them.
        self._below: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: str) -> None:
        """Add a path."""
        if path in self._paths:
            return
        self._paths.add(path)
        below = path
        for parent in ancestors(path):
            known = self._below.setdefault(parent, set())
            if below in known:
                return
            known.add(below)
            below = parent

    def discard(self, path: str) -> None:
        """Remove a path; those below it stay."""
        if path in self._paths:
            self._paths.discard(path)
            self._unlink(path)

    def drop(self, path: str) -> None:
        """Remove a path and everything below it."""
        if not self._paths:
            return
        left = [path]
        while left:
            one = left.pop()
            self._paths.discard(one)
            left.extend(self._below.pop(one, ()))
        self._unlink(path)

    def _unlink(self, path: str) -> None:
        """Remove the links from above to a path that is not paused and has nothing paused below it."""
        for parent in ancestors(path):
            if path in self._paths or path in self._below:
                return
            known = self._below.get(parent)
            if known is None:
                return
            known.discard(path)
            if not known:
                del self._below[parent]
            path = parent
