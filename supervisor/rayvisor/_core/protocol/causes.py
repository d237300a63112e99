"""Cause chains: exceptions and their texts as plain data.

No exception object leaves the process that raised it, since reading one would require importing the library
that it came from. Everything here reads exceptions by class name and attributes only.
"""

from __future__ import annotations

import re
import traceback

from rayvisor._redaction import masked_text
from rayvisor.faults import Cause

__all__ = ["Causes", "in_one_line", "plain_causes", "shortened", "text_cause", "traceback_text"]

Causes = tuple[Cause, ...]
"""Outermost first; the last one is the root cause."""

_MAX_LINKS = 8
_MAX_TEXT = 4000
_MAX_TRACEBACK = 40_000
_OMISSION = "\n...\n"
_LAST_LINE = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.DOTALL)


def plain_causes(error: BaseException) -> Causes:
    """Follow an exception to its root cause and return the links as plain data.

    * At most eight links are followed, along ``__cause__`` and ``__context__``.
    * Ray's wrapper around the exception of a task is removed. Where the wrapper carries only a text, the
      exception is read from the last lines of its traceback.
    * An exception group (of asyncio, anyio or a user, also nested) is followed into its first leaf; its own
      message states how many leaves there are.
    * A message longer than 4,000 characters loses its middle. An exception whose ``__str__`` raises gets a
      message that says so.

    Parameters
    ----------
    error
        Any exception, also one that derives from ``BaseException`` only, such as a panic of a Rust extension.

    Returns
    -------
    Causes
        Outermost first; never empty.
    """
    causes: list[Cause] = []
    followed: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in followed and len(causes) < _MAX_LINKS:
        followed.add(id(link))
        if _wraps_task_error(link):
            inner = getattr(link, "cause", None)
            if not isinstance(inner, BaseException) or inner is link:
                causes.append(text_cause(_text(getattr(link, "traceback_str", "")) or _text(link)))
                break
            link = inner
        elif isinstance(link, BaseExceptionGroup):
            leaf, leaves = _first_leaf(link)
            count = f" ({leaves} exceptions, the first of which follows)" if leaves > 1 else ""
            causes.append(Cause(type(link).__name__, shortened(_text(link.message) + count)))
            link = leaf
        else:
            causes.append(Cause(type(link).__name__, shortened(_text(link))))
            link = _next(link)
    # Only wrappers around each other lead nowhere.
    return tuple(causes) or (Cause(type(error).__name__, shortened(_text(error))),)


def in_one_line(error: BaseException) -> str:
    """Return the cause chain of an exception as one line of text, outermost first."""
    return "; ".join(str(cause) for cause in plain_causes(error))


def text_cause(text: str) -> Cause:
    """Read the exception from the last lines of a traceback, for an exception that arrived as text only."""
    lines = text.strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        if line and not line.startswith((" ", "\t")):
            match = _LAST_LINE.match("\n".join(lines[index:]))
            if match and match[1][:1].isalpha():
                return Cause(match[1].rpartition(".")[2], shortened(match[2] or ""))
    return Cause("UnknownError", shortened(text))


def shortened(text: str) -> str:
    """Return a text without its secrets, surrounding whitespace and, beyond 4,000 characters, its middle."""
    return masked_text(_cut(text.strip(), _MAX_TEXT))


def traceback_text(error: BaseException) -> str:
    """Return the traceback of an exception as text, whatever the methods of foreign classes do.

    A message in it loses its middle beyond 4,000 characters, and the whole beyond 40,000.
    """
    try:
        parts = traceback.format_exception(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as failure:  # noqa: BLE001 - as in _text
        return f"<no traceback: formatting it raised {type(failure).__name__}>"
    return masked_text(_cut("".join(_cut(part, _MAX_TEXT) for part in parts), _MAX_TRACEBACK))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = (limit - len(_OMISSION)) // 2
    return text[:kept] + _OMISSION + text[-kept:]


def _text(value: object) -> str:
    """Return ``str(value)`` as a plain ``str``, whatever the ``__str__`` of a foreign class does."""
    try:
        return str.strip(str(value))  # of `str` itself: a subclass could override it, and would not unpickle
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust extension is no Exception
        return f"<no message: __str__ raised {type(error).__name__}>"


def _next(link: BaseException) -> BaseException | None:
    if link.__cause__ is not None:
        return link.__cause__
    return None if link.__suppress_context__ else link.__context__


def _wraps_task_error(error: BaseException) -> bool:
    return any(
        kind.__name__ == "RayTaskError" and str(kind.__module__).partition(".")[0] == "ray"
        for kind in type(error).__mro__
    )


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> tuple[BaseException, int]:
    """Return the first exception of a group that is no group itself, and how many of those there are."""
    leaves: list[BaseException] = []
    open_ones: list[BaseException] = [group]
    while open_ones:
        error = open_ones.pop()
        if isinstance(error, BaseExceptionGroup):
            open_ones += reversed(error.exceptions)
        else:
            leaves.append(error)
    return leaves[0], len(leaves)
