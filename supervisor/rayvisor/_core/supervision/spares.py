"""Warm spares: one takes the place of an engine that ends; the next start of that engine is the new spare."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayvisor._core.supervision.nodes import Child
    from rayvisor._core.supervision.state import State

__all__ = ["go_down", "step_in"]

STANDBY = "STANDBY"


def go_down(state: State, down: Child, event: str, why: str) -> None:
    """Move a child that goes down, and have a spare serve in its place, if there is one."""
    spare = _spare_for(down) if down.parent.spares else None
    if spare is not None:
        # The spare comes first: requests the child leaves must find it, not only engines that serve already.
        state.move(spare, "promote", f"in place of {down.spec.id}")
    state.move(down, event, why)
    if spare is not None:
        state.move(down, "standby", f"{spare.spec.id} takes its place")


def step_in(state: State, spare: Child) -> None:
    """Have a spare that has just come up serve in place of a child that is down, if there is one."""
    if not spare.parent.spares or spare.configuration.leaf != STANDBY:
        return
    for down in spare.parent.children.values():
        missing = down.configuration.state == "RESTARTING" and STANDBY not in down.configuration.flags
        if missing and down.up_since is None and down.incarnation > 1:
            state.move(down, "standby", f"{spare.spec.id} takes its place")
            state.move(spare, "promote", f"in place of {down.spec.id}")
            return


def _spare_for(down: Child) -> Child | None:
    if STANDBY in down.configuration.flags:
        return None
    spares = (each for each in down.parent.children.values() if each.configuration.leaf == STANDBY)
    return next(spares, None)
