"""Search of errors by type or by dotted name, anywhere in the chain of causes. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rayvisor.errors import SpecError

__all__ = ["find", "matcher"]

_MOST_LINKS = 64


def matcher(errors: Sequence[Any]) -> Callable[[BaseException], bool]:
    """Return a function that tells whether one exception, without its causes, is one of these errors.

    Raises
    ------
    SpecError
        No error is given, or one is neither a type of exceptions nor a dotted name.
    """
    if not errors:
        raise SpecError("errors", errors, "must contain at least one error, as a type or a dotted name")
    types: list[type[BaseException]] = []
    names: list[str] = []
    for one in errors:
        if isinstance(one, type) and issubclass(one, BaseException):
            types.append(one)
        elif isinstance(one, str) and all(part.isidentifier() for part in one.split(".")) and "." in one:
            names.append(one)
        else:
            raise SpecError(
                "errors", one, "must be a type of exceptions, or a dotted name as 'package.module.Name'"
            )
    wanted = frozenset(names)

    def matches(error: BaseException) -> bool:
        if isinstance(error, tuple(types)):
            return True
        kinds = type(error).__mro__
        if any(f"{kind.__module__}.{kind.__qualname__}" in wanted for kind in kinds):
            return True
        # A name that its package re-exports counts as well; the code that raised it has imported it.
        return any(_imported(name) in kinds for name in names)

    return matches


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def find(error: BaseException, matches: Callable[[BaseException], bool]) -> BaseException | None:
    """Search an exception, its causes, its contexts, and the members of groups."""
    for link in _chain(error):
        if matches(link):
            return link
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_LINKS:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting.append(link.__cause__)
        if not link.__suppress_context__:
            waiting.append(link.__context__)
        waiting.append(getattr(link, "cause", None))  # where Ray keeps a task's error
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)
