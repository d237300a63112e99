"""Checks of single values, shared by everything that takes numbers, durations or choices from a user.

Each names the field, the value and the bound, in the same terms everywhere. They raise
[`SpecError`][rayvisor.SpecError] unless ``error`` names another class that is built from the same three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import TypeAlias, TypeGuard, TypeVar, cast

from rayvisor.errors import SpecError

__all__ = ["MakesError", "is_number", "is_whole", "member", "one_of", "seconds", "whole"]

Member = TypeVar("Member", bound=StrEnum)
MakesError: TypeAlias = Callable[[str, object, str], Exception]
"""A class of errors that is made from a field, its value and the problem."""


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Whether ``value`` is a whole number, ``least`` or more; True and False are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a number; True and False are not numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(
    name: str,
    value: object,
    unit: str = "",
    *,
    least: int | None = 1,
    none: bool = False,
    term: str = "",
    error: MakesError = SpecError,
) -> None:
    """Check that ``value`` is a whole number of ``unit``, ``least`` or more.

    Parameters
    ----------
    name
        The field.
    value
        Its value.
    unit
        Plural of what is counted, for the message.
    least
        Lower bound; None: no bound.
    none
        Whether None is allowed as well.
    term
        OTP's term for the mistake.
    error
        Class of the error.

    Raises
    ------
    SpecError
        With the field, the value and the bound; or another class if ``error`` says so.
    """
    if is_whole(value, least) or (none and value is None):
        return
    of = unit and f" of {unit}"
    bound = "" if least is None else f", {least} or more"
    raise _made(error, name, value, f"must be a whole number{of}{bound}{', or None' if none else ''}", term)


def seconds(
    name: str,
    value: object,
    *,
    least: float = 0.0,
    exclusive: bool = False,
    below: float | None = None,
    why: str = "",
    term: str = "",
    error: MakesError = SpecError,
) -> None:
    """Check that ``value`` is a number of seconds within its bounds.

    Parameters
    ----------
    name
        The field.
    value
        Its value.
    least
        Lower bound.
    exclusive
        Whether the value must be more than ``least``, and not merely equal to it.
    below
        Upper bound, which is excluded; ``math.inf`` refuses an infinite value. None: no bound.
    why
        Where the lower bound comes from, for the message.
    term
        OTP's term for the mistake.
    error
        Class of the error.

    Raises
    ------
    SpecError
        With the field, the value and the bounds; or another class if ``error`` says so.
    """
    # A comparison with NaN is false, and a whole number may be too large to be made a float.
    if (
        is_number(value)
        and (value > least if exclusive else value >= least)
        and (below is None or value < below)
    ):
        return
    bound = f"more than {least:g}" if exclusive else f"{least:g} or more"
    if below is not None:
        bound += ", and finite" if math.isinf(below) else f", and less than {below:g}"
    raise _made(error, name, value, f"must be a number of seconds, {bound}{why and f' ({why})'}", term)


def one_of(name: str, value: object, choices: Collection[str], *, error: MakesError = SpecError) -> None:
    """Check that ``value`` is one of a few texts.

    Raises
    ------
    SpecError
        With the field, the value and the choices; or another class if ``error`` says so.
    """
    if not isinstance(value, str) or value not in choices:
        raise error(name, value, f"must be one of {', '.join(map(repr, choices))}")


def member(name: str, kind: type[Member], value: object, *, term: str = "") -> Member:
    """Return the member of an enum that ``value`` is, or is the value of.

    Raises
    ------
    SpecError
        With the field, the value and the choices.
    """
    try:
        return kind(cast("str", value))
    except ValueError:
        choices = ", ".join(repr(each.value) for each in kind)
        raise SpecError(name, value, f"must be one of {choices}", term=term or f"invalid_{name}") from None


def _made(error: MakesError, name: str, value: object, problem: str, term: str) -> Exception:
    return SpecError(name, value, problem, term=term) if error is SpecError else error(name, value, problem)
