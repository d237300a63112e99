"""Limits of a pool's requests, and counters of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rayvisor._public import shown_as
from rayvisor._validation import MakesError, is_number, is_whole, one_of, seconds, whole
from rayvisor.errors import SpecError
from rayvisor.specs.engines import WEIGHTS_CHANGED

__all__ = ["Counts", "OnWeightsChanged", "RequestLimits", "check_bounds"]

OnWeightsChanged = Literal["splice", "restart", "fail"]
"""A way to handle a request whose weights change under it."""
DIVERGENCE = ("splice", "fail")
"""Ways to handle a request that differs when it is generated again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits of the requests of a pool.

    Parameters
    ----------
    queue_limit
        How many new samples may wait for an engine; further ones are refused with ``QueueFullError``.
    timeout
        Seconds a request may take from ``generate`` to its last chunk, unless it brings its own timeout.
    max_attempts
        How many engines a sample is tried on, unless its request brings its own number.
    on_divergence
        What to do when a request that is generated again differs: ``"splice"`` reports it and continues from
        the delivered tokens if that is valid, ``"fail"`` fails the request.
    on_weights_changed
        What happens to a request whose engine's weights change, or that continues in an engine with other
        weights: ``"splice"`` continues behind the delivered tokens, ``"restart"`` starts it again, ``"fail"``
        fails it if anything had been delivered. It leaves an engine that is declared stale immediately;
        spliced requests that could not continue behind their tokens stay.
    seeds
        Whether sampled requests without a seed get one; without a seed they cannot be generated again.
    slow_at, fast_at
        Tokens of a sample that its reader has not taken, at which its engine's output is no longer read, and
        is read again.
    orders_per_sequence
        Samples an engine is given for each sequence that it runs at a time (its ``max_num_seqs``).
    """

    queue_limit: int = 1000
    timeout: float = 600.0
    max_attempts: int = 5
    on_divergence: str = "splice"
    on_weights_changed: str = "splice"
    seeds: bool = True
    slow_at: int = 256
    fast_at: int = 64
    orders_per_sequence: float = 2.0

    def __post_init__(self) -> None:
        whole("queue_limit", self.queue_limit, "samples")
        check_bounds(self.timeout, self.max_attempts, self.on_divergence, self.on_weights_changed)
        whole("slow_at", self.slow_at, "tokens")
        if not is_whole(self.fast_at, 0) or self.fast_at >= self.slow_at:
            raise SpecError(
                "fast_at",
                self.fast_at,
                f"must be a whole number of tokens, 0 or more, and less than slow_at={self.slow_at}",
            )
        if not is_number(self.orders_per_sequence) or not 0 < self.orders_per_sequence < math.inf:
            raise SpecError(
                "orders_per_sequence", self.orders_per_sequence, "must be a number, more than 0, and finite"
            )


@dataclass(slots=True)
class Counts:
    """Counters since the pool was made."""

    submitted: int = 0
    finished: int = 0
    failed: int = 0
    abandoned: int = 0
    """Requests whose reader left before their end."""
    tokens: int = 0
    moved: int = 0
    """Attempts that ended before their sample did."""
    finishes_restored: int = 0
    divergences: int = 0
    late_items: int = 0
    """Items of attempts that were no longer wanted."""


def check_bounds(
    timeout: object,
    max_attempts: object,
    on_divergence: object,
    on_weights_changed: object,
    *,
    error: MakesError = SpecError,
) -> None:
    """Check the limits of a pool for its requests, or those that a request brings.

    Raises
    ------
    SpecError
        With the field, its value and the problem; or another class if ``error`` says so.
    """
    seconds("timeout", timeout, exclusive=True, below=math.inf, error=error)
    whole("max_attempts", max_attempts, "attempts", error=error)
    one_of("on_divergence", on_divergence, DIVERGENCE, error=error)
    one_of("on_weights_changed", on_weights_changed, WEIGHTS_CHANGED, error=error)


shown_as("rayvisor.pool", RequestLimits)
