"""The common parts of all pictures: the frame with title, description and style, and the measures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from statecharts.renderers._text import columns, xml

__all__ = ["COLORS", "LETTER", "LIGHT", "LINE", "number", "scheme", "sheet", "text_line", "text_width"]

LINE = 18
"""Pixels from one line of text to the next; everything is aligned to this grid."""
LETTER = 7.25
"""Maximum width, in pixels, of a column of text in the fonts named below at 12 pixels."""
COLORS = 6
"""Number of colours for arrows."""

LIGHT: Final = ("#0b7a3b", "#a15c00", "#0a5fc2", "#b3261e", "#7a3db8", "#00757a")
"""Readable on white, visible on black."""
_DARK = ("#5fd38d", "#f0b45a", "#7ab4ff", "#ff8f86", "#cf9cff", "#5fd0d6")

_LIGHT_PAGE = """--ink:#1f2328;--soft:#57606a;--line:#8c959f;--card:#ffffff;--frame:#f6f8fa;--page:#ffffff;
--live:#ffd866;--passed:#fff4d1;--edge:#b26a00;--on:#1f2328;"""
_DARK_PAGE = """--ink:#e6edf3;--soft:#9da7b1;--line:#6e7681;--card:#0d1117;
--frame:#161b22;--page:#0d1117;--live:#7a5200;--passed:#3d2f10;--edge:#ffb74d;--on:#ffffff;"""

_STYLE = """
.statechart{%LIGHT%}
@media (prefers-color-scheme: dark){.statechart{%DARK%}}
.statechart text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
fill:var(--ink);white-space:pre}
.statechart .page{fill:var(--page)}
.statechart .frame{fill:var(--frame);stroke:var(--line)}
.statechart .card{fill:var(--card);stroke:var(--line)}
.statechart .inner{fill:none;stroke:var(--line)}
.statechart .choice{stroke-dasharray:5 3}
.statechart .name{font-weight:bold}
.statechart .soft{fill:var(--soft)}
.statechart .live{fill:var(--live);stroke:var(--edge);stroke-width:3}
.statechart .passed{fill:var(--passed);stroke:var(--edge);stroke-width:2}
.statechart .lit text,.statechart .lit tspan{fill:var(--on)}
.statechart .wire{fill:none;stroke-width:1.3;stroke-linejoin:round}
.statechart .plain{stroke:var(--line);fill:none}
.statechart .dot{fill:var(--ink)}
"""


def scheme(*, dark: bool) -> str:
    """Return the colours of a picture on a light or a dark page, as CSS properties."""
    page, colors = (_DARK_PAGE, _DARK) if dark else (_LIGHT_PAGE, LIGHT)
    return page + ";".join(f"--c{index}:{color}" for index, color in enumerate(colors))


def _style() -> str:
    rules = "".join(
        f".statechart .c{index}{{stroke:var(--c{index})}}.statechart .t{index}{{fill:var(--c{index})}}\n"
        for index in range(COLORS)
    )
    return _STYLE.replace("%LIGHT%", scheme(dark=False)).replace("%DARK%", scheme(dark=True)) + rules


_STYLED = _style()


def number(value: float) -> str:
    """Format a coordinate as briefly as possible."""
    return f"{value:.1f}".removesuffix(".0")


def text_line(
    x: float, y: float, words: Iterable[tuple[str, str]], *, anchor: str = "start", style: str = ""
) -> str:
    """Return a line of text whose words have individual styles."""
    runs: list[tuple[str, str]] = []
    for word, kind in words:
        if runs and runs[-1][1] == kind:
            runs[-1] = (f"{runs[-1][0]} {word}", kind)
        else:
            runs.append((f" {word}" if runs else word, kind))
    inside = "".join(
        f'<tspan class="{kind}">{_spaced(text)}</tspan>' if kind else _spaced(text) for text, kind in runs
    )
    end = ' text-anchor="end"' if anchor == "end" else ""
    look = f' class="{style}"' if style else ""
    return f'<text x="{number(x)}" y="{number(y)}"{end}{look}>{inside}</text>'


def _spaced(text: str) -> str:
    return f" {xml(text)}" if text.startswith(" ") else xml(text)


def sheet(
    kind: str, name: str, description: str, size: tuple[float, float], body: Iterable[str]
) -> Iterator[str]:
    """Put a frame around a picture, with a title and a description for screen readers."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")
    width, height = (number(length) for length in size)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="statechart" role="img" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" aria-labelledby="{slug}-title {slug}-desc">'
    )
    yield f'<title id="{slug}-title">{xml(f"{kind} {name}")}</title>'
    yield f'<desc id="{slug}-desc">{xml(description)}</desc>'
    yield f"<style>{_STYLED}</style>"
    yield '<rect class="page" width="100%" height="100%"/>'
    yield from body
    yield "</svg>"


def text_width(text: str) -> float:
    """Return the maximum width of a text in pixels."""
    return columns(text) * LETTER
