"""What an operator paused stays paused: also when its supervisor, and so its place in the tree, is made anew.

A child keeps its holds through its own restarts. When its supervisor is restarted, the core makes a new
child at the same path, without any. The path's hold is put back here before that child comes up.
"""

from __future__ import annotations

from collections.abc import Callable

from rayvisor._core import messages as m

__all__ = ["Holds"]

REQUESTED = "REQUESTED"


class Holds:
    """Follows the effects of the core.

    Parameters
    ----------
    post
        Feeds an event to the core.
    """

    def __init__(self, post: Callable[[m.Event], None]) -> None:
        self._post = post
        self._asked: set[str] = set()
        self._seen: set[str] = set()

    def follow(self, effect: m.Effect) -> None:
        """Take note of an effect."""
        if isinstance(effect, m.Changed):
            self._changed(effect)
        elif isinstance(effect, m.Forgotten):
            below = f"{effect.child}/"
            for paths in (self._asked, self._seen):
                paths -= {path for path in paths if path == effect.child or path.startswith(below)}

    def _changed(self, effect: m.Changed) -> None:
        child, held = effect.child, REQUESTED in effect.after.flags
        if effect.event == "start":
            wanted = child in self._asked or (child not in self._seen and self._parent_held(child))
            self._seen.add(child)
            if wanted and not held:
                self._post(m.Reported(child, effect.incarnation, "pause"))
        elif held:
            self._asked.add(child)
        elif REQUESTED in effect.before.flags:
            self._asked.discard(child)

    def _parent_held(self, child: str) -> bool:
        """Whether the supervisor of a child that is new was paused: then so is the child."""
        return child.rpartition("/")[0] in self._asked
