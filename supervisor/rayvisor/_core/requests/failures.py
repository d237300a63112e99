"""The errors that requests end with, made from what is known of them."""

from __future__ import annotations

from rayvisor._core.protocol.wire import Refused
from rayvisor._core.requests.errors import (
    AttemptsExhaustedError,
    DeadlineExceededError,
    InvalidRequestError,
    PoisonRequestError,
    ReplayDivergedError,
    UnmovableRequestError,
    WeightsChangedError,
)
from rayvisor._core.requests.results import Divergence
from rayvisor._core.requests.state import Request
from rayvisor.faults import Fault

__all__ = ["diverged", "exhausted", "overdue", "poison", "refused", "unmovable", "weights_changed"]


def overdue(request: Request) -> DeadlineExceededError:
    """Its deadline has passed."""
    return DeadlineExceededError(
        request.id,
        timeout=request.budget,
        delivered=request.delivered,
        where=request.where,
        fault=request.fault,
    )


def exhausted(request: Request, reason: str) -> AttemptsExhaustedError:
    """It has lost as many engines as it may."""
    return AttemptsExhaustedError(
        request.id,
        attempts=request.max_attempts,
        delivered=request.delivered,
        reason=reason,
        fault=request.fault,
    )


def unmovable(request: Request) -> UnmovableRequestError:
    """It has lost its engine and cannot go on elsewhere."""
    return UnmovableRequestError(
        request.id, delivered=request.delivered, reason=request.plan.reason, fault=request.fault
    )


def diverged(request: Request, found: Divergence, reason: str) -> ReplayDivergedError:
    """Generated again it came out different, and it does not go on all the same."""
    return ReplayDivergedError(request.id, divergence=found, reason=reason, fault=request.fault)


def poison(request: Request, fault: Fault) -> PoisonRequestError:
    """An engine died while it ran there alone."""
    return PoisonRequestError(request.id, strikes=request.strikes, fault=fault)


def refused(request: Request, item: Refused) -> InvalidRequestError:
    """The engine says that it is wrong."""
    said = str(item.causes[-1]) if item.causes else "the engine refused it and gave no reason"
    return InvalidRequestError("request", request.id, said, request=request.id, causes=item.causes)


def weights_changed(request: Request, before: int, after: int) -> WeightsChangedError:
    """It would go on with other weights, and is not to."""
    return WeightsChangedError(request.id, before=before, after=after, delivered=request.delivered)
