"""The errors that are retried: chosen by type, by a function, or by the class of the fault."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

from rayvisor._backends.ray.errors import end_of, is_ray_error
from rayvisor._core.protocol.causes import plain_causes
from rayvisor.errors import SpecError
from rayvisor.faults import FaultClass, classify

__all__ = ["ErrorFilter", "RetryOn", "class_of", "error_filter", "is_cancellation"]

RetryOn: TypeAlias = (
    FaultClass | type[Exception] | Iterable[type[Exception] | FaultClass] | Callable[[Exception], bool]
)
ErrorFilter: TypeAlias = Callable[[Exception], bool]

_MOST_LINKS = 16
_FORMS = "must be exception types, a FaultClass, or a function of the error that returns a bool"


def error_filter(retry_on: RetryOn) -> ErrorFilter:
    """Return a predicate for each of the forms that a caller may give.

    Raises
    ------
    SpecError
        It has none of the forms, or a type is not an ``Exception``: such types are never caught.
    """
    value: Any = retry_on
    if isinstance(value, FaultClass | type):
        value = (value,)
    elif isinstance(value, str):
        raise SpecError("retry_on", value, _FORMS)
    if isinstance(value, Iterable):
        kinds = tuple(value)
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        classes = frozenset(kind for kind in kinds if isinstance(kind, FaultClass))
        if not kinds or len(types) + len(classes) != len(kinds):
            raise SpecError("retry_on", retry_on, _FORMS)
        for kind in types:
            if not issubclass(kind, Exception):
                raise SpecError("retry_on", kind, "must be an Exception: nothing else is ever caught")
        return lambda error: isinstance(error, types) or (bool(classes) and class_of(error) in classes)
    if not callable(value):
        raise SpecError("retry_on", retry_on, _FORMS)
    return lambda error: bool(value(error))


def is_cancellation(error: Exception) -> bool:
    """Return whether an error is a cancellation, although it derives from ``Exception``."""
    if isinstance(error, concurrent.futures.CancelledError):
        return True
    return is_ray_error(error) and "TaskCancelledError" in {kind.__name__ for kind in type(error).__mro__}


def class_of(error: Exception) -> FaultClass:
    """Return the fault class of an error, as if a starting child had ended with it.

    An error whose outcome is not confirmed yet is TRANSIENT: an actor that Ray cannot reach, gRPC's
    UNAVAILABLE, a connection that broke or was refused, also where one of them is the cause of the error. An
    actor that has *died* of one in its ``__init__`` is not: nothing is left to wait for.
    """
    end = end_of(error)
    actor_died = not end.unavailable and _is_named(error, "RayActorError")
    passing = not actor_died and _passes(_innermost(error))
    return classify(
        replace(
            end,
            causes=end.causes or plain_causes(error),
            unavailable=end.unavailable or passing,
            lost=end.node_died or (actor_died and not end.init_failed),
        ),
        starting=True,
    )


def _is_named(error: BaseException, name: str) -> bool:
    return is_ray_error(error) and name in {kind.__name__ for kind in type(error).__mro__}


def _innermost(error: BaseException) -> BaseException:
    """Follow the explicit causes only: an error raised while another was handled is a separate one."""
    for _ in range(_MOST_LINKS):
        inner = getattr(error, "cause", None) if _is_named(error, "RayTaskError") else error.__cause__
        if not isinstance(inner, BaseException) or inner is error:
            break
        error = inner
    return error


def _passes(error: BaseException) -> bool:
    if isinstance(error, ConnectionError) or _is_named(error, "ActorUnavailableError"):
        return True
    code = getattr(error, "code", None)  # a gRPC error has a method of this name
    try:
        status = code() if callable(code) else None
    except Exception:  # noqa: BLE001 - an unrelated method of this name with arguments: no gRPC error
        return False
    return getattr(status, "name", "") == "UNAVAILABLE"
