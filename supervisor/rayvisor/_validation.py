"""What a number in a spec may be: checked in one place, and said in the same words everywhere."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar, cast

from rayvisor.errors import SpecError

__all__ = ["is_whole", "seconds", "whole"]


def is_whole(value: object, least: int) -> bool:
    """Whether it is a whole number, ``least`` or more; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole(name: str, value: object, unit: str = "", *, least: int = 1, term: str = "") -> None:
    """Refuse what is no whole number of ``unit``, ``least`` or more.

    Raises
    ------
    SpecError
        With the field, the value and the bound.
    """
    if not is_whole(value, least):
        of = unit and f" of {unit}"
        raise SpecError(name, value, f"must be a whole number{of}, {least} or more", term=term)


def seconds(
    name: str,
    value: object,
    *,
    least: float = 0.0,
    exclusive: bool = False,
    below: float | None = None,
    why: str = "",
    term: str = "",
) -> None:
    """Refuse what is no number of seconds, ``least`` or more; with ``exclusive`` more than that.

    With ``below`` it must be less than that as well: ``math.inf`` refuses what has no end.

    Raises
    ------
    SpecError
        With the field, the value and the bound.
    """
    # A comparison with NaN is false, and a whole number may be too large to be made a float.
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and (value > least if exclusive else value >= least)  # type: ignore[operator]
    if not good or (below is not None and not value < below):  # type: ignore[operator]
        bound = f"more than {least:g}" if exclusive else f"{least:g} or more"
        if below is not None:
            bound += ", and finite" if math.isinf(below) else f", and less than {below:g}"
        raise SpecError(name, value, f"must be a number of seconds, {bound}{why and f' ({why})'}", term=term)


E = TypeVar("E", bound=StrEnum)


def _member(name: str, kind: type[E], value: object, *, term: str = "") -> E:
    try:
        return kind(cast("str", value))
    except ValueError:
        choices = ", ".join(repr(member.value) for member in kind)
        raise SpecError(name, value, f"must be one of {choices}", term=term or f"invalid_{name}") from None
