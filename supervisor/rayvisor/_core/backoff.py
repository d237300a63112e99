"""Delays before restarts: bounded, jittered, with the randomness given from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor.specs import Backoff, Jitter

if TYPE_CHECKING:
    from random import Random

__all__ = ["delay"]


def delay(backoff: Backoff, attempt: int, previous: float, random: Random) -> float:
    """Seconds to wait before restart number ``attempt`` in a row (0, 1, ...).

    ``previous`` is the delay before: decorrelated jitter grows from it.
    """
    ceiling = backoff.ceiling(attempt)
    if ceiling == 0:
        return 0.0
    match backoff.jitter:
        case Jitter.NONE:
            return ceiling
        case Jitter.FULL:
            return random.uniform(0.0, ceiling)
        case Jitter.EQUAL:
            return random.uniform(ceiling / 2, ceiling)
        case Jitter.DECORRELATED:
            return min(backoff.maximum, random.uniform(backoff.initial, max(backoff.initial, previous * 3)))
