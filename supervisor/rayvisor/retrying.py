"""``rv.retry``: a bounded, jittered backoff around calls, coroutine functions and Ray's object refs.

It is made for bring-up: many engines load at the same time, one peer misses a heartbeat, Ray reports it as
unavailable, and unless the wait is repeated the whole construction is lost. Only the given errors are
retried; all others pass immediately and unchanged.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from random import Random
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

import anyio

from rayvisor._backends.ray.retry_on import ErrorFilter, RetryOn, error_filter, is_cancellation
from rayvisor._backends.ray.waits import RefWaiter, Waited, is_ref
from rayvisor._core.tasks.attempts import Attempts, Limits
from rayvisor._log import get_logger
from rayvisor.errors import SpecError
from rayvisor.faults import FaultClass
from rayvisor.specs import Backoff, Jitter

__all__ = ["RefWait", "retry"]

T = TypeVar("T")
P = ParamSpec("P")
log = get_logger("rayvisor.retry")

_DELAYS = Backoff(initial=1.0, maximum=8.0, jitter=Jitter.EQUAL, first_delay_zero=False)


@overload
def retry(
    target: Awaitable[T],
    /,
    *,
    retry_on: RetryOn = ...,
    max_attempts: int | None = ...,
    timeout: float | None = ...,
    backoff: Backoff = ...,
    seed: int | Random | None = ...,
    reprobe: Callable[[int], Awaitable[T]] | None = ...,
) -> RefWait[T]: ...
@overload
def retry(
    target: Sequence[Awaitable[T]],
    /,
    *,
    retry_on: RetryOn = ...,
    max_attempts: int | None = ...,
    timeout: float | None = ...,
    backoff: Backoff = ...,
    seed: int | Random | None = ...,
    reprobe: Callable[[int], Awaitable[T]] | None = ...,
) -> RefWait[list[T]]: ...
@overload
def retry(
    target: Callable[P, T],
    /,
    *,
    retry_on: RetryOn = ...,
    max_attempts: int | None = ...,
    timeout: float | None = ...,
    backoff: Backoff = ...,
    seed: int | Random | None = ...,
) -> Callable[P, T]: ...
@overload
def retry(
    *,
    retry_on: RetryOn = ...,
    max_attempts: int | None = ...,
    timeout: float | None = ...,
    backoff: Backoff = ...,
    seed: int | Random | None = ...,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def retry(
    target: Any = None,
    /,
    *,
    retry_on: RetryOn = FaultClass.TRANSIENT,
    max_attempts: int | None = 4,
    timeout: float | None = None,
    backoff: Backoff = _DELAYS,
    seed: int | Random | None = None,
    reprobe: Callable[[int], Any] | None = None,
) -> Any:
    """Retry a call, or a wait for object refs, that failed for a temporary reason, a bounded number of times.

    - ``retry(function)`` and ``@retry`` return a function of the same signature; a coroutine function stays
      one. ``@retry(max_attempts=3, ...)`` does as well.
    - ``retry(ref)`` and ``retry([ref, ...])`` wait for Ray's object refs: ``await`` the result in an event
      loop, or call its ``result()``, which blocks, also inside an actor's ``__init__``. Each ref has
      attempts of its own; all refs are awaited concurrently, so a lost one is noticed immediately.

    Waiting creates nothing twice: the *same* refs are awaited again. Only if a ref is spent (Ray keeps the
    error in a ref that raised, and raises it again) the same actor is called again, through ``reprobe``.
    Nothing is ever created here.

    Only ``Exception`` is caught, so ``KeyboardInterrupt``, ``SystemExit`` and a cancelled task pass without a
    call of ``retry_on``; so do Ray's ``TaskCancelledError`` and ``concurrent.futures.CancelledError``. An
    error that ``retry_on`` refuses passes on the first attempt unchanged, with its traceback. When no attempt
    is left, the last error is raised, with the attempts in a note (``error.__notes__``).

    Parameters
    ----------
    target
        A function or coroutine function (or an object that is callable as one), an object ref, or a sequence
        of refs.
    retry_on
        Which errors lead to another attempt: exception types, a function ``error -> bool``, or a
        [`FaultClass`][rayvisor.FaultClass]. Default: ``FaultClass.TRANSIENT``, that is Ray's
        ActorUnavailableError, gRPC's UNAVAILABLE and broken or refused connections, raised themselves or as
        the cause of another error. The death of an actor is never one of them.
    max_attempts
        How many attempts in all, the first one included. None: as many as ``timeout`` allows.
    timeout
        Seconds after the beginning in which an attempt may still begin; a wait for refs ends then. None: no
        such limit.
    backoff
        The delays between the attempts, their jitter, and limits of its own. Default: 1, 2, 4, at most 8
        seconds, of which the upper half is random.
    seed
        Makes the jitter repeatable: the same delays in each call. Or a ``random.Random`` to draw from.
    reprobe
        For refs: a function that takes the index of a spent ref in the sequence (0 for a single one), calls
        an idempotent method of the same actor and returns its ref. None: the spent ref is awaited again.

    Raises
    ------
    SpecError
        Immediately: a value cannot work, or the target would create objects twice (a class), repeat its
        results (a generator), or can be awaited only once (a coroutine).
    TimeoutError
        Refs were not there after ``timeout`` seconds, and none of them had failed.

    Examples
    --------
    >>> calls = []
    >>> @retry(retry_on=ConnectionError, max_attempts=3, backoff=Backoff(initial=0.01, maximum=0.01))
    ... def fetch() -> str:
    ...     calls.append(1)
    ...     if len(calls) < 3:
    ...         raise ConnectionResetError("peer went away")
    ...     return "weights"
    >>> fetch(), len(calls)
    ('weights', 3)

    Engines that load concurrently, inside the ``__init__`` of the actor that needs them::

        engines = [Engine.remote(rank) for rank in range(8)]
        rv.retry(
            [engine.ensure_started.remote() for engine in engines],
            reprobe=lambda rank: engines[rank].ensure_started.remote(),
        ).result()
    """
    limits = Limits(backoff=backoff, max_attempts=max_attempts, timeout=timeout)
    if seed is not None and not isinstance(seed, int | Random):
        raise SpecError("seed", seed, "must be a whole number or a random.Random")
    plan = _Plan(limits, error_filter(retry_on), seed)
    if target is None:
        return lambda function: _wrap(function, plan)
    if is_ref(target):
        return RefWait([target], plan, _checked(reprobe), single=True)
    if isinstance(target, Sequence) and not isinstance(target, str | bytes):
        for place, ref in enumerate(target):
            if not is_ref(ref):
                raise SpecError(f"target[{place}]", ref, "must be one of Ray's object refs, as the others")
        return RefWait(list(target), plan, _checked(reprobe), single=False)
    if reprobe is not None:
        raise SpecError("reprobe", reprobe, "is for object refs; a function is called again as it is")
    return _wrap(target, plan)


def _checked(reprobe: Any) -> Callable[[int], Any] | None:
    if reprobe is not None and not callable(reprobe):
        raise SpecError("reprobe", reprobe, "must be a function that returns a new ref of the same actor")
    return cast("Callable[[int], Any] | None", reprobe)


class _Plan:
    """How a target is retried; shared by all its calls."""

    def __init__(self, limits: Limits, is_retried: ErrorFilter, seed: int | Random | None) -> None:
        self.limits = limits
        self._is_retried = is_retried
        self._seed = seed

    def begin(self) -> Attempts:
        """Begin the attempts of one call, or of one ref."""
        return Attempts(self.limits, self.random(), time.monotonic())

    def random(self) -> Random:
        """Return the source of jitter."""
        return self._seed if isinstance(self._seed, Random) else Random(self._seed)

    def with_shared_random(self) -> _Plan:
        """Return the same plan with one source of jitter for all attempts that it begins."""
        return _Plan(self.limits, self._is_retried, self.random())

    def judge(self, what: str, attempts: Attempts, error: Exception) -> float | None:
        """Return the seconds until the next attempt; None: the error must be raised."""
        if is_cancellation(error) or not self._is_retried(error):
            return None
        said = f"{type(error).__name__}: {error}"
        delay = attempts.failed(said, time.monotonic())
        if delay is None:
            error.add_note(attempts.note())
        log.warning(
            "retry.failed" if delay is not None else "retry.exhausted",
            what=what,
            attempt=attempts.failures,
            delay=delay,
            error=said[:500],
        )
        return delay


def _wrap(function: Any, plan: _Plan) -> Any:
    name = getattr(function, "__qualname__", None) or type(function).__name__
    if inspect.isawaitable(function):
        close = getattr(function, "close", None)
        if close is not None:
            close()
        raise SpecError("target", function, "can be awaited only once; give the function that returns it")
    if isinstance(function, type):
        raise SpecError("target", function, "is a class: another attempt would create another object")
    if hasattr(function, "remote"):
        raise SpecError("target", function, "is Ray's; use rv.submit for a task, or retry its refs")
    if not callable(function):
        raise SpecError("target", function, "must be a function, a coroutine function, or object refs of Ray")
    call = function if inspect.isroutine(function) else type(function).__call__
    if isinstance(function, functools.partial):
        call = function.func
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise SpecError("target", function, "is a generator: another attempt would repeat its items")
    if inspect.iscoroutinefunction(call):
        return _wrap_async(function, name, plan)
    return _wrap_sync(function, name, plan)


def _wrap_sync(function: Any, name: str, plan: _Plan) -> Any:
    @functools.wraps(function)
    def tried(*args: Any, **kwargs: Any) -> Any:
        attempts = plan.begin()
        while True:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                delay = plan.judge(name, attempts, error)
                if delay is None:
                    raise
            time.sleep(delay)

    return tried


def _wrap_async(function: Any, name: str, plan: _Plan) -> Any:
    @functools.wraps(function)
    async def tried(*args: Any, **kwargs: Any) -> Any:
        attempts = plan.begin()
        while True:
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                delay = plan.judge(name, attempts, error)
                if delay is None:
                    raise
            await anyio.sleep(delay)

    return tried


class RefWait(Generic[T]):
    """A wait for object refs, returned by [`retry`][rayvisor.retry]: ``await`` it, or call `result`."""

    def __init__(
        self, refs: list[Any], plan: _Plan, reprobe: Callable[[int], Any] | None, *, single: bool
    ) -> None:
        self._refs = refs
        self._plan = plan
        self._reprobe = reprobe
        self._single = single

    def result(self) -> T:
        """Wait, blocking this thread; return the value, or the list of values in the order of the refs."""
        return self._value(self._waiter().wait())

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        return self._value(await self._waiter().wait_in_loop())

    def _value(self, values: list[Any]) -> T:
        return cast("T", values[0] if self._single else values)

    def _waiter(self) -> RefWaiter:
        # With a source of jitter for each, refs that failed together would be retried together.
        plan = self._plan.with_shared_random()

        def waited(place: int, ref: Any) -> Waited:
            attempts = plan.begin()

            def judge(error: Exception) -> float:
                delay = plan.judge(f"ref {place}", attempts, error)
                if delay is None:
                    raise error
                return delay

            return Waited(place, ref, judge, self._reprobe)

        return RefWaiter([waited(*each) for each in enumerate(self._refs)], self._plan.limits.longest)
