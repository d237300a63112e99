"""Functions and coroutine functions: what is tried again, and what passes as it is."""

from __future__ import annotations

import concurrent.futures
import functools
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from typing import Any

import anyio
import pytest

import rayvisor as rv

QUICK = rv.Backoff(initial=0.001, maximum=0.002, first_delay_zero=False)


class Flaky:
    """Fails with each of these in turn, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, value: int = 7) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return value

    async def later(self, value: int = 7) -> int:
        return self(value)


def test_what_fails_for_a_passing_reason_is_called_again_with_the_same_arguments() -> None:
    flaky = Flaky(ConnectionResetError(), ConnectionRefusedError())
    assert rv.retry(flaky, backoff=QUICK)(value=9) == 9
    assert flaky.calls == 3


async def test_a_coroutine_function_is_awaited_again() -> None:
    flaky = Flaky(ConnectionResetError(), ConnectionRefusedError())
    assert await rv.retry(flaky.later, backoff=QUICK)(9) == 9
    assert await rv.retry(functools.partial(flaky.later, 3), backoff=QUICK)() == 3
    assert flaky.calls == 4


@pytest.mark.parametrize("bare", [True, False])
async def test_it_decorates_functions_methods_and_coroutine_functions(*, bare: bool) -> None:
    decorate = rv.retry if bare else rv.retry(backoff=QUICK, max_attempts=5)

    class Client:
        def __init__(self) -> None:
            self.tries = 0

        @decorate
        def fetch(self) -> str:
            """The value."""
            self.tries += 1
            if self.tries < 2 and not bare:
                raise ConnectionResetError
            return "fetched"

        @decorate
        async def post(self) -> str:
            return "posted"

    client = Client()
    assert (client.fetch(), await client.post()) == ("fetched", "posted")
    assert (Client.fetch.__name__, Client.fetch.__doc__) == ("fetch", "The value.")


@pytest.mark.parametrize(
    ("retry_on", "error"),
    [
        (KeyError, KeyError("x")),
        ((KeyError, OSError), FileNotFoundError("x")),
        (lambda error: "again" in str(error), RuntimeError("once again")),
        (rv.FaultClass.TRANSIENT, ConnectionResetError("peer")),
        ((rv.FaultClass.TRANSIENT, KeyError), KeyError("x")),
    ],
)
def test_what_is_worth_another_attempt_is_said_by_type_predicate_or_class(
    retry_on: rv.FaultClass | type[Exception], error: Exception
) -> None:
    flaky = Flaky(error)
    assert rv.retry(flaky, retry_on=retry_on, backoff=QUICK)() == 7
    refused = Flaky(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        rv.retry(refused, retry_on=retry_on, backoff=QUICK)()
    assert refused.calls == 1


def test_the_class_follows_the_innermost_cause() -> None:
    outer = RuntimeError("could not load")
    outer.__cause__ = ConnectionResetError("peer")
    assert rv.retry(Flaky(outer), backoff=QUICK)() == 7
    masked = RuntimeError("CUDA out of memory")
    masked.__context__ = ConnectionResetError("met before it")
    with pytest.raises(RuntimeError, match="CUDA"):
        rv.retry(Flaky(masked), backoff=QUICK)()


def test_what_grpc_calls_unavailable_is_transient_and_nothing_else_of_it() -> None:
    grpc = import_module("grpc")

    class RpcError(grpc.RpcError):  # type: ignore[misc,name-defined]
        def __init__(self, code: Any) -> None:
            self._code = code

        def code(self) -> Any:
            return self._code

    assert rv.retry(Flaky(RpcError(grpc.StatusCode.UNAVAILABLE)), backoff=QUICK)() == 7
    with pytest.raises(RpcError):
        rv.retry(Flaky(RpcError(grpc.StatusCode.INVALID_ARGUMENT)), backoff=QUICK)()


async def test_what_is_refused_passes_on_the_first_attempt_unchanged_with_its_traceback() -> None:
    def deep() -> None:
        raise error

    error = ValueError("max_model_len must be positive")
    error.__cause__ = cause = KeyError("k")
    asked: list[Exception] = []

    def never(refused: Exception) -> bool:
        asked.append(refused)
        return False

    async def later() -> None:
        deep()

    for attempt in (rv.retry(deep, retry_on=never), rv.retry(later, retry_on=never)):
        error.__traceback__ = None
        with pytest.raises(ValueError, match="max_model_len") as raised:
            await (attempt() or later())  # the first one raises at once
        assert raised.value is error
        assert not hasattr(error, "__notes__")
        assert (error.__cause__, error.__context__) == (cause, None)
        assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "deep"
    assert asked == [error, error]


@pytest.mark.parametrize("passing", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_only_exceptions_are_caught_and_the_predicate_is_not_asked_of_others(
    passing: type[BaseException],
) -> None:
    def never(_: Exception) -> bool:
        raise AssertionError("it was asked")

    flaky = Flaky(passing(), passing())
    with pytest.raises(passing):
        rv.retry(flaky, retry_on=never, backoff=QUICK)()
    with pytest.raises(passing):
        await rv.retry(flaky.later, retry_on=never, backoff=QUICK)()
    assert flaky.calls == 2


def test_a_cancelled_future_passes_too() -> None:
    flaky = Flaky(concurrent.futures.CancelledError())
    with pytest.raises(concurrent.futures.CancelledError):
        rv.retry(flaky, retry_on=Exception, backoff=QUICK)()
    assert flaky.calls == 1


async def test_cancellation_passes_from_an_attempt_and_from_a_delay() -> None:
    slow = rv.Backoff(initial=60.0, maximum=60.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    for target in (anyio.sleep_forever, Flaky(ConnectionResetError()).later):
        with anyio.move_on_after(0.05) as scope:
            await rv.retry(target, retry_on=Exception, backoff=slow)()
        assert scope.cancelled_caught


def test_when_it_is_exhausted_the_last_error_is_raised_with_the_attempts_in_a_note() -> None:
    errors = [ConnectionResetError(f"number {number}") for number in range(9)]
    flaky = Flaky(*errors)
    with pytest.raises(ConnectionResetError) as raised:
        rv.retry(flaky, max_attempts=3, backoff=QUICK)()
    assert raised.value is errors[2]
    (note,) = raised.value.__notes__
    assert note.startswith("rayvisor.retry: 3 attempts in ")
    assert note.splitlines()[1:] == [
        f"  {number + 1}. ConnectionResetError: number {number}" for number in range(3)
    ]


def test_what_is_refused_later_is_as_unchanged_as_what_is_refused_first() -> None:
    flaky = Flaky(ConnectionResetError(), ValueError("dtype"))
    with pytest.raises(ValueError, match="dtype") as raised:
        rv.retry(flaky, backoff=QUICK)()
    assert not hasattr(raised.value, "__notes__")
    assert flaky.calls == 2


def test_elapsed_time_ends_the_attempts() -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionResetError

    backoff = rv.Backoff(initial=0.01, maximum=0.01, jitter=rv.Jitter.NONE, first_delay_zero=False)
    began = time.monotonic()
    with pytest.raises(ConnectionResetError):
        rv.retry(fail, max_attempts=None, timeout=0.1, backoff=backoff)()
    assert 2 <= calls <= 11
    assert time.monotonic() - began < 30.0


def _numbers() -> Iterator[int]:
    yield 1


async def _numbers_later() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Flaky, "would create another object"),
        (_numbers, "would repeat its items"),
        (_numbers_later, "would repeat its items"),
        (3, "must be a function"),
        ([1], r"target\[0\]=1"),
        ("name", "must be a function"),
    ],
)
def test_what_another_attempt_would_make_twice_is_refused(target: Callable[[], object], message: str) -> None:
    with pytest.raises(rv.SpecError, match=message):
        rv.retry(target)


def test_a_coroutine_is_refused_since_it_can_be_awaited_once() -> None:
    async def later() -> None: ...

    with pytest.raises(rv.SpecError, match="give the function that returns it"):
        rv.retry(later())  # type: ignore[type-var,unused-ignore]


def test_reprobing_is_for_refs() -> None:
    with pytest.raises(rv.SpecError, match="is for object refs"):
        rv.retry(Flaky(), reprobe=lambda _: None)  # type: ignore[call-overload]
