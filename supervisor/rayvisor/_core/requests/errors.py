"""Errors of one request to an engine pool.

    RequestError
    ├── InvalidRequestError     a prompt or parameter that cannot work, found by the pool or by the engine
    ├── QueueFullError          too many requests wait already
    ├── NoEngineError           no engine will come back; the root cause comes first
    ├── DeadlineExceededError   it took longer than its timeout
    ├── AttemptsExhaustedError  it lost its engine too often
    ├── PoisonRequestError      an engine died under it while it ran there alone
    ├── UnmovableRequestError   its engine has ended, and a request of its kind cannot continue elsewhere
    ├── WeightsChangedError     the weights changed under it, and it must not continue with others
    ├── ReplayDivergedError     it differed when it was generated again
    ├── GenerationClosedError   its stream was closed before, and is read again
    └── GenerationInUseError    its stream is read by two tasks, or from another event loop

Each error carries its data and builds its own message; if a fault is behind it, the root cause comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._public import shown_as
from rayvisor.errors import RayvisorError

if TYPE_CHECKING:
    from rayvisor._core.requests.results import Divergence
    from rayvisor.faults import Cause, Fault

__all__ = [
    "AttemptsExhaustedError",
    "DeadlineExceededError",
    "GenerationClosedError",
    "GenerationInUseError",
    "InvalidRequestError",
    "NoEngineError",
    "PoisonRequestError",
    "QueueFullError",
    "ReplayDivergedError",
    "RequestError",
    "UnmovableRequestError",
    "WeightsChangedError",
]


LONGEST_VALUE = 200
"""Characters of a value that a message shows: a long prompt would hide the rest."""


class RequestError(RayvisorError):
    """One request failed. The pool and its engines may be fine.

    Parameters
    ----------
    request
        Id of the request; empty if it was refused before it got one.
    fault
        The last fault of an engine that had this request in flight, or None.
    """

    def __init__(self, request: str, message: str, fault: Fault | None = None) -> None:
        self.request = request
        self.fault = fault
        super().__init__(f"{fault}: {message}" if fault is not None else message)


class InvalidRequestError(RequestError, ValueError):
    """A prompt or a parameter that cannot work. The engines are fine; sending it again does not help.

    Parameters
    ----------
    field
        The field: ``"prompt"``, ``"params['n']"``, ...; ``"request"`` if the engine refused the request.
    value
        The value found there.
    problem
        What is wrong with it, and how to fix it.
    causes
        Errors of the engine, outermost first; empty if the pool itself refused the request.
    """

    def __init__(
        self, field: str, value: object, problem: str, *, request: str = "", causes: tuple[Cause, ...] = ()
    ) -> None:
        self.field = field
        self.value = value
        self.problem = problem
        self.causes = causes
        shown = repr(value)
        if len(shown) > LONGEST_VALUE:
            shown = f"{shown[:LONGEST_VALUE]}..."
        super().__init__(request, f"{problem} ({field}={shown})" if causes else f"{field}={shown}: {problem}")


class QueueFullError(RequestError):
    """Too many requests wait already: try again later, or use ``generate_many``, which waits for room."""

    def __init__(self, waiting: int, limit: int, samples: int) -> None:
        self.waiting = waiting
        self.limit = limit
        self.samples = samples
        super().__init__(
            "",
            f"{waiting} samples wait for an engine, and queue_limit={limit} has no room for {samples} more; "
            "try again later, raise queue_limit, or use generate_many, which waits for room",
        )


class NoEngineError(RequestError):
    """No engine of the pool will come back on its own."""

    def __init__(self, request: str, fault: Fault | None) -> None:
        name = f"request {request}" if request else "the request"
        super().__init__(
            request,
            f"{name} was not served, since the pool was stopped"
            if fault is None
            else f"{name} cannot be served, since no engine of the pool will come back; fix the cause, then "
            "restart the pool's children",
            fault,
        )


class DeadlineExceededError(RequestError, TimeoutError):
    """The request took longer than its timeout. Chunks delivered before remain valid.

    Parameters
    ----------
    timeout
        Its timeout in seconds.
    delivered
        How many tokens it had delivered.
    where
        Its place at that time: in flight, waiting for an engine, ...
    """

    def __init__(
        self, request: str, *, timeout: float, delivered: int, where: str, fault: Fault | None = None
    ) -> None:
        self.timeout = timeout
        self.delivered = delivered
        self.where = where
        super().__init__(
            request,
            f"request {request} was not done within timeout={timeout:g} seconds: {delivered} tokens "
            f"delivered, {where}; give it a longer timeout, or the pool more engines",
            fault,
        )


class AttemptsExhaustedError(RequestError):
    """The request lost its engine as often as ``max_attempts`` allows."""

    def __init__(
        self, request: str, *, attempts: int, delivered: int, reason: str, fault: Fault | None
    ) -> None:
        self.attempts = attempts
        self.delivered = delivered
        self.reason = reason
        super().__init__(
            request,
            f"request {request} lost its engine in each of attempts={attempts} attempts, last: {reason}; "
            f"{delivered} tokens had been delivered",
            fault,
        )


class PoisonRequestError(RequestError):
    """An engine died under this request while it ran there alone, after two earlier engine deaths.

    Parameters
    ----------
    strikes
        How many engines died while it was in flight there, including the last one.
    """

    def __init__(self, request: str, *, strikes: int, fault: Fault) -> None:
        self.strikes = strikes
        super().__init__(
            request,
            f"request {request} was in flight in {strikes} engine deaths, alone in the last one: it is taken "
            "to be their cause and is not run again",
            fault,
        )


class UnmovableRequestError(RequestError):
    """The engine of the request has ended, and a request of its kind cannot continue elsewhere.

    Parameters
    ----------
    delivered
        How many tokens it had delivered.
    reason
        The parameter that makes it unmovable.
    """

    def __init__(self, request: str, *, delivered: int, reason: str, fault: Fault | None) -> None:
        self.delivered = delivered
        self.reason = reason
        super().__init__(
            request,
            f"request {request} lost its engine after {delivered} tokens and cannot be moved: {reason}; "
            "send it again",
            fault,
        )


class ReplayDivergedError(RequestError):
    """The request was generated again and differed from the part that had been delivered.

    Parameters
    ----------
    divergence
        Its position, the expected and the actual value.
    reason
        Why the stream did not continue from the delivered tokens instead.
    """

    def __init__(self, request: str, *, divergence: Divergence, reason: str, fault: Fault | None) -> None:
        self.divergence = divergence
        self.reason = reason
        super().__init__(request, f"request {request} {divergence}; {reason}", fault)


class WeightsChangedError(RequestError):
    """The weights changed under a request with ``on_weights_changed="fail"``.

    Parameters
    ----------
    before, after
        The version of its delivered tokens, and that of the engine it would continue in.
    delivered
        How many tokens it had delivered.
    """

    def __init__(self, request: str, *, before: int, after: int, delivered: int) -> None:
        self.before = before
        self.after = after
        self.delivered = delivered
        super().__init__(
            request,
            f"the weights changed from version {before} to {after} after {delivered} tokens, with "
            "on_weights_changed='fail'; send it again, or use 'restart' or 'splice'",
        )


class GenerationClosedError(RequestError):
    """The stream was closed before (explicitly, or by leaving its loop) and is read again."""

    def __init__(self, request: str) -> None:
        super().__init__(
            request,
            f"the stream of request {request} was closed before, which aborted it; to stop reading for a "
            "while, take chunks with anext(generation) instead of a for loop",
        )


class GenerationInUseError(RequestError):
    """The stream is read by two tasks at the same time, or from another event loop than the pool's."""

    def __init__(self, request: str, problem: str) -> None:
        super().__init__(request, f"the stream of request {request} {problem}")


shown_as(
    "rayvisor.pool",
    AttemptsExhaustedError,
    DeadlineExceededError,
    GenerationClosedError,
    GenerationInUseError,
    InvalidRequestError,
    NoEngineError,
    PoisonRequestError,
    QueueFullError,
    ReplayDivergedError,
    RequestError,
    UnmovableRequestError,
    WeightsChangedError,
)
