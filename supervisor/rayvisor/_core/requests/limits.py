"""What bounds the requests of a pool, and what is counted of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayvisor._public import shown_as
from rayvisor._validation import MakesError, is_number, is_whole, one_of, seconds, whole
from rayvisor.errors import SpecError
from rayvisor.specs.engines import WEIGHTS_CHANGED

__all__ = ["Counts", "RequestLimits", "check_bounds"]

DIVERGENCE = ("splice", "fail")
"""What can be done with a request that is generated again and comes out different."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What bounds the requests of a pool.

    Parameters
    ----------
    queue_limit
        How many new samples may wait for an engine; one more is refused with ``QueueFullError``.
    timeout
        Seconds a request may take from ``generate`` to its last chunk, unless it brings its own.
    max_attempts
        How many engines a sample may be given to, unless its request brings its own number.
    on_divergence
        What to do when a request that is generated again comes out different: ``"splice"`` reports it and
        goes on from the delivered tokens where that is valid, ``"fail"`` fails the request.
    on_weights_changed
        What becomes of a request whose engine's weights change under it, or that goes on in an engine with
        other weights: ``"splice"`` goes on behind the delivered tokens, ``"restart"`` begins it anew,
        ``"fail"`` fails it if anything had been delivered. It leaves an engine that is declared stale at
        once; spliced ones that could not go on behind their tokens stay.
    seeds
        Whether sampled requests without a seed are given one; without it they cannot be generated again.
    slow_at, fast_at
        Undelivered tokens of a sample at which its engine's output is no longer read, and read again.
    orders_per_sequence
        Orders an engine is given for each sequence that it runs at a time (its ``max_num_seqs``).
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
    """What the front has counted since it was made."""

    submitted: int = 0
    finished: int = 0
    failed: int = 0
    left: int = 0
    tokens: int = 0
    moved: int = 0
    """Attempts that ended before their sample did."""
    finishes_restored: int = 0
    divergences: int = 0
    late_items: int = 0
    """Items of attempts that were not wanted any more."""


def check_bounds(
    timeout: object,
    max_attempts: object,
    on_divergence: object,
    on_weights_changed: object,
    *,
    error: MakesError = SpecError,
) -> None:
    """Check what a pool prescribes for its requests, or one request brings of its own.

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
