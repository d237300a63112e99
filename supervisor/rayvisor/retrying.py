"""``rv.retry``: a bounded, jittered backoff around calls, coroutine functions and Ray's object refs.

What a bring-up needs: many engines load at once, one peer misses a heartbeat, Ray calls it unavailable, and
unless somebody waits again the whole construction is lost. What is retried is only what was asked for;
everything else passes at once, as it is.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from random import Random
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

import anyio

from rayvisor._backends.ray.retry_on import RetryOn, Wanted, is_cancellation, wanted
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
    """Try again, a bounded number of times, what failed for a reason that may pass.

    - ``retry(function)`` and ``@retry`` give a function of the same signature; a coroutine function stays
      one. ``@retry(max_attempts=3, ...)`` does as well.
    - ``retry(ref)`` and ``retry([ref, ...])`` wait for Ray's object refs: ``await`` the result in an event
      loop, or call its ``result()``, which blocks, also inside an actor's ``__init__``. Each ref has
      attempts of its own; the refs are waited for side by side, so that one that is lost is known at once.

    Waiting makes nothing twice: the *same* refs are waited for again. Only where a ref is spent (Ray keeps
    the error in a ref that raised; waiting again raised it again) is the same actor asked anew, through
    ``reprobe``. Nothing is ever created here.

    Only ``Exception`` is caught, so ``KeyboardInterrupt``, ``SystemExit`` and a cancelled task pass without
    anybody being asked; so do Ray's ``TaskCancelledError`` and ``concurrent.futures.CancelledError``. What
    ``retry_on`` refuses passes on the first attempt as it is, with its traceback. When no attempt is left,
    the last error is raised, with the attempts in a note (``error.__notes__``).

    Parameters
    ----------
    target
        What to try: a function or coroutine function (an object that is called as one is as good), an
        object ref, or a sequence of refs.
    retry_on
        Which errors are worth another attempt: exception types, a function ``error -> bool``, or a
        [`FaultClass`][rayvisor.FaultClass]. Default: ``FaultClass.TRANSIENT``, that is Ray's
        ActorUnavailableError, gRPC's UNAVAILABLE and broken or refused connections, by themselves or as
        the cause of what was raised. An actor that has died is never one of them.
    max_attempts
        How many in all, the first one included. None: as many as ``timeout`` allows.
    timeout
        Seconds after the beginning in which an attempt may still begin; a wait for refs ends then. None: no
        such bound.
    backoff
        The delays between the attempts, their jitter, and bounds of its own. Default: 1, 2, 4, at most 8
        seconds, of which the upper half is left to chance.
    seed
        Makes the jitter repeatable: the same delays in each call. Or a ``random.Random`` to draw from.
    reprobe
        For refs: given the place of a spent ref in the sequence (0 for a single one), calls an
        idempotent method of the same actor and returns its ref. None: the spent ref is waited for again.

    Raises
    ------
    SpecError
        When it is made: a value that cannot work, or a target that would make things twice (a class), half
        of one (a generator), or can be awaited once only (a coroutine).
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

    Engines that load side by side, inside the ``__init__`` of whatever needs them::

        engines = [Engine.remote(rank) for rank in range(8)]
        rv.retry(
            [engine.ensure_started.remote() for engine in engines],
            reprobe=lambda rank: engines[rank].ensure_started.remote(),
        ).result()
    """
    limits = Limits(backoff=backoff, max_attempts=max_attempts, timeout=timeout)
    if seed is not None and not isinstance(seed, int | Random):
        raise SpecError("seed", seed, "must be a whole number or a random.Random")
    plan = _Plan(limits, wanted(retry_on), seed)
    if target is None:
        return lambda function: _wrap(function, plan)
    if is_ref(target):
        return RefWait([target], plan, _checked(reprobe), single=True)
    if isinstance(target, Sequence) and not isinstance(target, str | bytes):
        for place, ref in enumerate(target):
            if not is_ref(ref):
                raise SpecError(f"target[{place}]", ref, "must be one of Ray's object refs, as its siblings")
        return RefWait(list(target), plan, _checked(reprobe), single=False)
    if reprobe is not None:
        raise SpecError("reprobe", reprobe, "is for object refs; a function is simply called again")
    return _wrap(target, plan)


def _checked(reprobe: Any) -> Callable[[int], Any] | None:
    if reprobe is not None and not callable(reprobe):
        raise SpecError("reprobe", reprobe, "must be a function that returns a new ref of the same actor")
    return cast("Callable[[int], Any] | None", reprobe)


class _Plan:
    """How a target is retried; one for all its calls."""

    def __init__(self, limits: Limits, wanted: Wanted, seed: int | Random | None) -> None:
        self.limits = limits
        self._wanted = wanted
        self._seed = seed

    def begin(self) -> Attempts:
        """Begin the attempts of one call, or of one ref."""
        return Attempts(self.limits, self.random(), time.monotonic())

    def random(self) -> Random:
        return self._seed if isinstance(self._seed, Random) else Random(self._seed)

    def judge(self, what: str, attempts: Attempts, error: Exception) -> float | None:
        """Seconds until the next attempt; None: the error is to be raised as it is by now."""
        if is_cancellation(error) or not self._wanted(error):
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
        raise SpecError("target", function, "can be awaited only once; give the function that makes it")
    if isinstance(function, type):
        raise SpecError("target", function, "is a class: another attempt would make another object")
    if hasattr(function, "remote"):
        raise SpecError("target", function, "is Ray's; use rv.submit for a task, or retry the refs it gives")
    call = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004 - which kind
    if isinstance(function, functools.partial):
        call = function.func
    if not callable(function):
        raise SpecError("target", function, "must be a function, a coroutine function, or object refs of Ray")
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise SpecError("target", function, "is a generator: another attempt would repeat what it has given")
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
    """A wait for object refs, made by [`retry`][rayvisor.retry]: ``await`` it, or call `result`."""

    def __init__(
        self, refs: list[Any], plan: _Plan, reprobe: Callable[[int], Any] | None, *, single: bool
    ) -> None:
        self._refs = refs
        self._plan = plan
        self._reprobe = reprobe
        self._single = single

    def result(self) -> T:
        """Wait, blocking this thread; the value, or the list of values in the order of the refs."""
        return self._value(self._waiter().wait())

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        return self._value(await self._waiter().wait_in_loop())

    def _value(self, values: list[Any]) -> T:
        return cast("T", values[0] if self._single else values)

    def _waiter(self) -> RefWaiter:
        # One source of chance for all, or refs that failed together would come back together.
        plan = _Plan(self._plan.limits, self._plan._wanted, self._plan.random())  # noqa: SLF001 - its own kind

        def waited(place: int, ref: Any) -> Waited:
            attempts = plan.begin()

            def judge(error: Exception) -> float:
                delay = plan.judge(f"ref {place}", attempts, error)
                if delay is None:
                    raise error
                return delay

            return Waited(place, ref, judge, self._reprobe)

        return RefWaiter([waited(*each) for each in enumerate(self._refs)], self._plan.limits.longest)
