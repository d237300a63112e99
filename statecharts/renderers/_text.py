"""Text in pictures: its width, its line breaks, and how it is escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["columns", "quoted", "unique_names", "wrapped", "xml"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(text: str) -> str:
    """Escape a text for XML; characters that XML forbids are replaced, and whitespace becomes one blank."""
    return escape(" ".join(_NOT_XML.sub("\ufffd", text).split()))


def quoted(text: str) -> str:
    """Escape a text for a string in DOT, so that nothing in it acts as an escape sequence."""
    plain = " ".join(text.replace("\0", "\ufffd").split())
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def columns(text: str) -> int:
    """Return the number of columns that a text fills in a monospaced font."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def wrapped(words: Iterable[tuple[str, str]], limit: int) -> list[list[tuple[str, str]]]:
    """Break styled words into lines of at most ``limit`` columns; words that are too long are split."""
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
    # An arrow stays on one line with its target.
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
    """Make a unique identifier of each word; return the identifiers by key.

    Parameters
    ----------
    wanted
        Key and word, in their order; the later of two equal identifiers is numbered.
    signs
        The characters of an identifier, as inside the brackets of a regular expression.
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
