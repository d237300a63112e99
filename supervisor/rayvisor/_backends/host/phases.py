"""Reads the progress of a start from the log of the engine's processes. Pure."""

from __future__ import annotations

import re

__all__ = ["phase_of"]

_LAST_LINE_CHARACTERS = 200
_PREFIX = re.compile(r"^\([^()]*pid=\d+\) ?|^(?:DEBUG|INFO|WARNING|ERROR) [\d:.\- ]+\[[^\]]*\] ?")
_HEADER = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR) [\d:.\- ]+\[")
_COMPILING = re.compile(r"compil|captur", re.IGNORECASE)


def phase_of(log: str) -> tuple[str, str]:
    r"""Return the phase of a starting engine and a detail, from the end of its log.

    Only lines with a logger's header count; the others are banners, warnings and continuations.

    >>> phase_of("(EngineCore pid=7) INFO 11-21 11:45:55 [core.py:133] Loading weights took 0.02 s\n  x = 1")
    ('loading', 'Loading weights took 0.02 s')
    """
    last = ""
    for line in reversed(log.splitlines()):
        last = line
        while (shorter := _PREFIX.sub("", last)) != last:
            last = shorter
        if _HEADER.search(line) and not last[:1].isspace():
            break
    else:
        return "loading", ""
    last = last.partition(" with config: ")[0]  # every setting follows
    return "compiling" if _COMPILING.search(last) else "loading", last[:_LAST_LINE_CHARACTERS]
