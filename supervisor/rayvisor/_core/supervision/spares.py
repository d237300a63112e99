"""Warm spares: one takes the place of an engine that ends, at once; that one comes back as the new spare."""

from __future__ import annotations

from rayvisor._core.supervision.nodes import Child
from rayvisor._core.supervision.recovery import Recoveries

__all__ = ["Spares"]

STANDBY = "STANDBY"


class Spares(Recoveries):
    """Swaps the places of a child that is down and a spare that is up."""

    def _goes_down(self, down: Child, event: str, why: str) -> None:
        """Move a child that goes down, and have a spare serve in its place, if there is one."""
        spare = self._spare_for(down)
        if spare is not None:
            # First of all: what the child leaves is to find it, and not only those that serve already.
            self._move(spare, "promote", f"in place of {down.spec.id}")
        self._move(down, event, why)
        if spare is not None:
            self._move(down, "standby", f"{spare.spec.id} takes its place")

    def _spare_for(self, down: Child) -> Child | None:
        if not down.parent.spares or STANDBY in down.configuration.flags:
            return None
        spares = (each for each in down.parent.children.values() if each.configuration.leaf == STANDBY)
        return next(spares, None)

    def _step_in(self, spare: Child) -> None:
        """Have a spare that has just come up serve in place of a child that is down, if there is one."""
        if not spare.parent.spares or spare.configuration.leaf != STANDBY:
            return
        for down in spare.parent.children.values():
            missing = down.configuration.state == "RESTARTING" and STANDBY not in down.configuration.flags
            if missing and down.up_since is None and down.incarnation > 1:
                self._swap(down, spare)
                return

    def _swap(self, down: Child, spare: Child) -> None:
        self._move(down, "standby", f"{spare.spec.id} takes its place")
        self._move(spare, "promote", f"in place of {down.spec.id}")
