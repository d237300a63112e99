"""Constructors of the errors that requests fail with."""

from __future__ import annotations

from rayvisor._core.protocol.wire import Refused
from rayvisor._core.requests.errors import (
    AttemptsExhaustedError,
    DeadlineExceededError,
    InvalidRequestError,
    PoisonRequestError,
    ReplayDivergedError,
    RequestError,
    UnmovableRequestError,
    WeightsChangedError,
)
from rayvisor._core.requests.results import Divergence
from rayvisor._core.requests.state import Request
from rayvisor.faults import Fault

__all__ = [
    "diverged",
    "exhausted",
    "internal",
    "overdue",
    "poison",
    "refused",
    "unmovable",
    "weights_changed",
]


def overdue(request: Request) -> DeadlineExceededError:
    """Return the error of a request whose deadline has passed."""
    return DeadlineExceededError(
        request.id,
        timeout=request.budget,
        delivered=request.delivered,
        where=request.where,
        fault=request.fault,
    )


def exhausted(request: Request, reason: str) -> AttemptsExhaustedError:
    """Return the error of a request that has used all its attempts."""
    return AttemptsExhaustedError(
        request.id,
        attempts=request.max_attempts,
        delivered=request.delivered,
        reason=reason,
        fault=request.fault,
    )


def internal(request: Request, error: Exception) -> RequestError:
    """Return the error of a request whose bookkeeping raised an error, which is its cause."""
    try:
        said = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an error whose text cannot be had still has a type
        said = type(error).__name__
    failed = RequestError(
        request.id,
        f"request {request.id} failed by an error in its bookkeeping, {said}; this is a defect of rayvisor, "
        "or its engine sent something that makes no sense",
        request.fault,
    )
    failed.__cause__ = error
    return failed


def unmovable(request: Request) -> UnmovableRequestError:
    """Return the error of a request that lost its engine and cannot continue elsewhere."""
    return UnmovableRequestError(
        request.id, delivered=request.delivered, reason=request.plan.reason, fault=request.fault
    )


def diverged(request: Request, found: Divergence, reason: str) -> ReplayDivergedError:
    """Return the error of a request that differed when it was generated again, and does not continue."""
    return ReplayDivergedError(request.id, divergence=found, reason=reason, fault=request.fault)


def poison(request: Request, fault: Fault) -> PoisonRequestError:
    """Return the error of a request under which an engine died while it ran there alone."""
    return PoisonRequestError(request.id, strikes=request.strikes, fault=fault)


def refused(request: Request, item: Refused) -> InvalidRequestError:
    """Return the error of a request that the engine refused."""
    said = str(item.causes[-1]) if item.causes else "the engine refused it and gave no reason"
    return InvalidRequestError("request", request.id, said, request=request.id, causes=item.causes)


def weights_changed(request: Request, before: int, after: int) -> WeightsChangedError:
    """Return the error of a request that would continue with other weights, and must not."""
    return WeightsChangedError(request.id, before=before, after=after, delivered=request.delivered)
