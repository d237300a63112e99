"""References to children: they outlive the incarnations they lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayvisor._runtime.carriers.actors import ActorBackend

__all__ = ["ChildRef"]


class ChildRef:
    """A child that is an actor: each use finds its present incarnation.

    Examples
    --------
    ``await sup["router"].call("route", request)`` calls a method, ``sup["router"].handle()`` gives Ray's
    own handle of the incarnation that is up now.
    """

    def __init__(self, path: str, actors: ActorBackend) -> None:
        self.path = path
        self._actors = actors

    def __repr__(self) -> str:
        return f"<ChildRef {self.path}>"

    def handle(self) -> Any:
        """Ray's handle of the present incarnation.

        Raises
        ------
        ChildUnavailableError
            There is none now.
        """
        return self._actors.actor(self.path).handle

    async def call(self, method: str, *args: Any, deadline: float | None = None, **kwargs: Any) -> Any:
        """Call a method of the present incarnation. The call is not repeated when that ends.

        Parameters
        ----------
        method, args, kwargs
            What to call.
        deadline
            Seconds to wait for the answer; None: as long as the incarnation lives.
        """
        return await self._actors.actor(self.path).call(method, args, kwargs, deadline=deadline)
