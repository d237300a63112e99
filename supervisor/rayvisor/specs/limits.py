"""How long a child may be silent or make no progress before it counts as stalled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayvisor._validation import is_whole, seconds
from rayvisor.errors import SpecError

__all__ = ["PATIENT", "StallLimits"]


_LONGEST_START = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StallLimits:
    """Limits on an engine that makes no progress; all times in seconds.

    Parameters
    ----------
    stall_after
        Time without a token while requests wait, and without its processes computing in the latter half of
        it, after which the engine has stalled. Also how long its host may be silent.
    step_limit
        The same limit whether the processes compute or not.
    probe_interval
        Time between two checks. A stall is found at the latest so long after its limit.
    failure_threshold
        ``(k, n)``: with ``k`` misses among the last ``n`` checks an engine is SUSPECT.
    total_start_timeout
        How long a start that makes progress may take in all; None: four times its ``start_timeout``.

    Raises
    ------
    SpecError
        When a value cannot work.
    """

    stall_after: float = 30.0
    step_limit: float = 300.0
    probe_interval: float = 2.0
    failure_threshold: tuple[int, int] = (3, 5)
    total_start_timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("stall_after", "step_limit", "probe_interval"):
            seconds(name, getattr(self, name), exclusive=True, below=math.inf)
        if self.total_start_timeout is not None:
            seconds("total_start_timeout", self.total_start_timeout, exclusive=True, below=math.inf)
        if not _is_k_of_n(self.failure_threshold):
            raise SpecError(
                "failure_threshold", self.failure_threshold, "must be (k, n): whole numbers with 1 <= k <= n"
            )
        least = self.failure_threshold[0] * self.probe_interval
        if self.stall_after < least:
            raise SpecError(
                "stall_after",
                self.stall_after,
                f"must be at least {least:g} s, k={self.failure_threshold[0]} times "
                f"probe_interval={self.probe_interval:g}: an engine is suspected before it is ended",
            )
        if self.step_limit < self.stall_after:
            raise SpecError(
                "step_limit",
                self.step_limit,
                f"must not be below stall_after={self.stall_after:g}: "
                "an engine that computes gets more time, not less",
            )

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats of an idle host."""
        return self.probe_interval / 2

    def longest(self, timeout: float) -> float:
        """Return the seconds a start may take in all if it may go ``timeout`` without progress."""
        return max(
            timeout,
            _LONGEST_START * timeout if self.total_start_timeout is None else self.total_start_timeout,
        )


def _is_k_of_n(value: object) -> bool:
    match value:
        case (k, n) if isinstance(value, tuple):
            return is_whole(k, 1) and is_whole(n, k)
    return False


PATIENT = StallLimits()
"""The default limits."""
