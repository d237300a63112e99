"""Restart delays: exponential, with jitter and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from rayvisor._validation import member, seconds, whole

if TYPE_CHECKING:
    from random import Random

__all__ = ["Backoff", "Jitter", "delay", "longest"]

_SUMMED = 1000
"""How many ceilings are added one by one; the rest is a geometric series, and then the maximum."""


class Jitter(StrEnum):
    """How a backoff delay is randomized, so that many children do not come back at the same moment."""

    NONE = "none"
    FULL = "full"
    """Between zero and the delay."""
    EQUAL = "equal"
    """Between half the delay and the delay."""
    DECORRELATED = "decorrelated"
    """Between the initial delay and three times the previous one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a child stays down before it is restarted. Beyond OTP, which never waits.

    Parameters
    ----------
    initial
        The first delay, in seconds.
    factor
        Factor by which each further delay grows.
    maximum
        The longest delay, in seconds.
    jitter
        How delays are randomized.
    first_delay_zero
        Whether the first restart has no delay; the delays then begin with the second.
    max_retries
        How many restarts in a row are tried before the supervisor gives up; None: no such limit.
    timeout
        How long after the first fault in a row a restart is still tried, in seconds; None: no such limit.
    reset_after
        Seconds of serving after which a child's next fault is the first in a row again.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> Backoff(initial=1.0, maximum=8.0).ceilings(5)
    (0.0, 1.0, 2.0, 4.0, 8.0)
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 30.0
    jitter: Jitter = Jitter.FULL
    first_delay_zero: bool = True
    max_retries: int | None = None
    timeout: float | None = None
    reset_after: float = 60.0

    def __post_init__(self) -> None:
        seconds("backoff.initial", self.initial, least=0.0)
        seconds("backoff.factor", self.factor, least=1.0)
        seconds("backoff.maximum", self.maximum, least=self.initial, why="backoff.initial")
        seconds("backoff.reset_after", self.reset_after, least=0.0)
        object.__setattr__(self, "jitter", member("backoff.jitter", Jitter, self.jitter))
        if self.max_retries is not None:
            whole(
                "backoff.max_retries",
                self.max_retries,
                "restarts",
                least=1,
                term="invalid_backoff.max_retries",
            )
        if self.timeout is not None:
            seconds("backoff.timeout", self.timeout, least=0.0)

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay before restart number ``attempt`` in a row (0, 1, ...), in seconds."""
        if self.first_delay_zero:
            if attempt == 0:
                return 0.0
            attempt -= 1
        try:
            return min(self.maximum, self.initial * self.factor**attempt)
        except OverflowError:
            return self.maximum

    def ceilings(self, count: int) -> tuple[float, ...]:
        """Return the first ``count`` ceilings."""
        return tuple(self.ceiling(attempt) for attempt in range(count))


def longest(backoff: Backoff, first: int, count: int) -> float:
    """Return the sum of ``count`` ceilings from number ``first`` on, in a time that is bounded."""
    each = min(count, _SUMMED)
    total = sum(backoff.ceiling(first + attempt) for attempt in range(each))
    left, start = count - each, backoff.ceiling(first + each)
    if left and backoff.factor > 1 and 0 < start < backoff.maximum:
        rate = math.log(backoff.factor)
        growing = math.ceil(min(left, math.log(backoff.maximum / start) / rate))
        try:
            total += start * math.expm1(growing * rate) / math.expm1(rate)
        except OverflowError:
            return math.inf
        left, start = left - growing, backoff.maximum
    return total + left * start


def delay(backoff: Backoff, attempt: int, previous: float, random: Random) -> float:
    """Return the seconds to wait before restart number ``attempt`` in a row (0, 1, ...).

    ``previous`` is the previous delay: decorrelated jitter grows from it.
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
