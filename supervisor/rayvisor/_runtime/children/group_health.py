"""Which engines of a group have reported a fault. Recoveries wait for its changes."""

from __future__ import annotations

from collections.abc import Callable

import anyio

__all__ = ["GroupHealth"]


class GroupHealth:
    """The engines under one supervisor that have reported a fault, and not yet that they have recovered."""

    __slots__ = ("__weakref__", "_changed", "_unhealthy")

    def __init__(self) -> None:
        self._unhealthy: set[str] = set()
        self._changed: anyio.Event | None = None

    def is_unhealthy(self, child: str) -> bool:
        """Whether this engine has a fault."""
        return child in self._unhealthy

    def others_unhealthy(self, child: str) -> bool:
        """Whether another engine of the group has a fault."""
        return len(self._unhealthy) > (child in self._unhealthy)

    def set(self, child: str, *, unhealthy: bool) -> None:
        """Record whether an engine has a fault."""
        if unhealthy != (child in self._unhealthy):
            (self._unhealthy.add if unhealthy else self._unhealthy.discard)(child)
            if self._changed is not None:
                self._changed.set()
                self._changed = None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the group holds."""
        while not condition():
            self._changed = self._changed or anyio.Event()
            await self._changed.wait()
