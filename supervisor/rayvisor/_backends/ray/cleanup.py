"""Clean-up steps: one that fails is logged, and never skips the others."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from rayvisor._log import get_logger

__all__ = ["attempt"]

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
