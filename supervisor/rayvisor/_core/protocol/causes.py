"""The causes of an exception as plain pairs of type name and message."""

from __future__ import annotations

__all__ = ["Causes", "plain_causes"]


Causes = tuple[tuple[str, str], ...]


def plain_causes(error: BaseException) -> Causes:
    """Follow an exception's chain: plain pairs, outermost first, at most eight."""
    causes: list[tuple[str, str]] = []
    link: BaseException | None = error
    while link is not None and len(causes) < 8:  # noqa: PLR2004 - a chain longer than a screen tells no more
        causes.append((type(link).__name__, str(link)))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return tuple(causes)


def _sentence(causes: Causes) -> str:
    if not causes:
        return "no cause was reported"
    name, message = causes[-1]
    return f"{name}: {message}" if message else name
