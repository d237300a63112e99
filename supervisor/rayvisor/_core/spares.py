"""Warm spares: one takes the place of an engine that ends, at once; that one comes back as the new spare."""

from __future__ import annotations

from rayvisor._core.recoveries import Recoveries
from rayvisor._core.tree import Child

__all__ = ["Spares"]

STANDBY = "STANDBY"


class Spares(Recoveries):
    """Swaps the places of a child that is down and a spare that is up."""

    def _take_over(self, down: Child) -> None:
        """Have a spare serve in place of a child that has gone down, if there is one."""
        if not down.parent.spares or STANDBY in down.configuration.flags:
            return
        for spare in down.parent.children.values():
            if spare.configuration.leaf == STANDBY:
                self._swap(down, spare)
                return

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
