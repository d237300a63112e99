"""Clean-up: a step that fails is logged and never skips the others, and none of them starts another Ray."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from rayvisor._log import get_logger

__all__ = ["attempt", "kill_actor", "remove_group"]

T = TypeVar("T")
log = get_logger("rayvisor.ray")


async def attempt(step: str, work: Awaitable[T]) -> T | None:
    """Await a step of a clean-up, log its failure, and return None in its place.

    Cancellation is no failure, and is raised.

    Parameters
    ----------
    step
        Its name in the log.
    work
        The step.
    """
    try:
        return await work
    except Exception:
        log.exception("ray.cleanup.failed", step=step)
        return None


def kill_actor(actor: Any, *, no_restart: bool = True) -> None:
    """Kill an actor. This blocks.

    Without a connection it does nothing: any call to Ray would start another Ray.
    """
    import ray

    if ray.is_initialized():
        ray.kill(actor, no_restart=no_restart)


def remove_group(group: Any) -> None:
    """Remove a placement group. This blocks, and does nothing without a connection, as `kill_actor`."""
    import ray
    from ray.util import remove_placement_group

    if ray.is_initialized():
        remove_placement_group(group)
