"""Text in pictures: how wide it is, where it breaks, how it is written so that it stays text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["columns", "quoted", "unique_names", "wrapped", "xml"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(text: str) -> str:
    """Write a text for XML; what XML cannot hold at all becomes a replacement sign, all space a blank."""
    return escape(" ".join(_NOT_XML.sub("\ufffd", text).split()))


def quoted(text: str) -> str:
    """Write a text as a string of DOT, without an escape of DOT's own."""
    plain = " ".join(text.replace("\0", "\ufffd").split())
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def columns(text: str) -> int:
    """Count the columns that a text fills in letters of one width."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def wrapped(words: Iterable[tuple[str, str]], limit: int) -> list[list[tuple[str, str]]]:
    """Break words, each with its style, into lines of at most ``limit`` columns; long words are cut."""
    lines: list[list[tuple[str, str]]] = [[]]
    used = 0
    for text, style in words:
        for word in _pieces(" ".join(text.split()), limit):
            width = columns(word)
            if lines[-1] and used + 1 + width > limit:
                lines.append([])
                used = 0
            used += width + (1 if lines[-1] else 0)
            lines[-1].append((word, style))
    return lines if lines[-1] else []


def _pieces(text: str, limit: int) -> Iterable[str]:
    # An arrow stays on the line of what it points at.
    for word in re.findall(r"(?:\u2192 )?[^ ]+", text):
        rest = word
        while columns(rest) > limit:
            size = limit
            while columns(rest[:size]) > limit:
                size -= 1
            yield rest[:size]
            rest = rest[size:]
        if rest:
            yield rest


def unique_names(wanted: Sequence[tuple[str, str]], signs: str = "A-Za-z0-9_") -> dict[str, str]:
    """Make an identifier of each wanted word, all different, by the key that it belongs to.

    Parameters
    ----------
    wanted
        Key and word, in their order; the later of two that come out the same is numbered.
    signs
        What may stand in an identifier, as inside the brackets of a regular expression.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for key, word in wanted:
        plain = re.sub(f"[^{signs}]", "_", word)
        free, number = plain, 2
        while free in taken:
            free, number = f"{plain}{number}", number + 1
        chosen[key] = free
        taken.add(free)
    return chosen
