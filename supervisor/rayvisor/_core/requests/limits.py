"""What bounds the requests of a pool, and what is counted of them."""

from __future__ import annotations

from dataclasses import dataclass

from rayvisor._core.requests.errors import InvalidRequestError

__all__ = ["Counts", "RequestLimits", "divergence", "seconds", "weights_changed", "whole"]

_DIVERGENCE = ("splice", "fail")
_WEIGHTS_CHANGED = ("splice", "restart", "fail")


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
        whole("queue_limit", self.queue_limit)
        seconds("timeout", self.timeout)
        whole("max_attempts", self.max_attempts)
        whole("slow_at", self.slow_at)
        if not 0 <= self.fast_at < self.slow_at:
            raise InvalidRequestError(
                "fast_at", self.fast_at, f"must be 0 or more, and less than slow_at={self.slow_at}"
            )
        if not self.orders_per_sequence > 0:
            raise InvalidRequestError("orders_per_sequence", self.orders_per_sequence, "must be more than 0")
        divergence(self.on_divergence)
        weights_changed(self.on_weights_changed)


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


def whole(field: str, value: object) -> int:
    """Return a count, or say what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(field, value, "must be a whole number, 1 or more")
    return value


def seconds(field: str, value: object) -> float:
    """Return seconds, or say what is wrong with them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InvalidRequestError(field, value, "must be a finite number of seconds, more than 0")
    return float(value)


def divergence(value: object) -> str:
    """Return what to do about a difference, or say what is wrong with it."""
    return _choice("on_divergence", value, _DIVERGENCE)


def weights_changed(value: object) -> str:
    """Return what to do when the weights change, or say what is wrong with it."""
    return _choice("on_weights_changed", value, _WEIGHTS_CHANGED)


def _choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise InvalidRequestError(field, value, f"must be one of {', '.join(map(repr, choices))}")
    return str(value)
