"""Charts and trees as part of a page: the common part of the Sphinx and the MkDocs extension.

[`figure`][statecharts.embedding.figure] makes a self-contained piece of HTML: the picture as SVG, in the
colours of the page's light or dark theme. Wide pictures scroll horizontally on narrow screens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module

from statecharts.chart import Chart
from statecharts.errors import ChartError
from statecharts.lifecycles import CHARTS
from statecharts.renderers import render
from statecharts.renderers._sheet import scheme
from statecharts.renderers._text import xml
from statecharts.tree import Tree, render_tree

__all__ = ["Embedding", "figure", "find", "split_states"]

_THEMES = ('[data-theme="{}"]', '[data-md-color-scheme="{}"]')
"""Attributes that hold the reader's choice: in Sphinx themes (Furo, PyData, Book), in Material for MkDocs."""
_DARK = ("dark", "slate")
_LIGHT = ("light", "default")


def _style() -> str:
    rules = [
        ".statechart-figure{margin:1.5em 0}",
        ".statechart-figure>div{overflow-x:auto}",
        ".statechart-figure svg{display:block}",
        ".statechart-figure figcaption{font-size:.875em;margin-top:.5em}",
    ]
    for names, dark in ((_LIGHT, False), (_DARK, True)):
        chosen = ",".join(
            f"{theme.format(name)} .statechart" for theme, name in zip(_THEMES, names, strict=True)
        )
        rules.append(f"{chosen}{{{scheme(dark=dark)}}}")
    return "\n".join(rules)


_STYLED = _style()
_SMALLEST = 0.8
"""Fraction of its natural size; below that a picture scrolls horizontally in its frame."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A chart or tree to show on a page, with the states to highlight.

    Parameters
    ----------
    name
        ``"actor"``, ``"engine"``, ``"task"`` or ``"supervisor"`` for rayvisor's own charts, or
        ``"module:NAME"`` for your own [`Chart`][statecharts.Chart] or [`Tree`][statecharts.Tree]; the
        module is imported.
    state
        The current leaf, highlighted (charts only).
    path
        The earlier leaves, highlighted faintly (charts only).
    caption
        Text below the picture.
    """

    name: str
    state: str | None = None
    path: tuple[str, ...] = ()
    caption: str = ""

    def text(self, format: str) -> str:
        """Render the chart or tree.

        Parameters
        ----------
        format
            A format that charts (or trees, if it is one) can be rendered to.

        Raises
        ------
        ChartError
            If the name cannot be found, does not name a chart or tree, or the state or format is unknown.
        """
        found = find(self.name)
        if isinstance(found, Chart):
            return render(found, format, at=self.state, path=self.path)
        if self.state is not None or self.path:
            raise ChartError(self.name, "state, path", "apply to charts only", "leave these out")
        return render_tree(found, format)


def find(name: str) -> Chart | Tree:
    """Return a chart or a tree by the name that a page uses.

    Parameters
    ----------
    name
        As in [`Embedding`][statecharts.embedding.Embedding].

    Raises
    ------
    ChartError
        If the name cannot be found, or names neither a chart nor a tree.

    Examples
    --------
    >>> find("task").name, find("statecharts.lifecycles:ENGINE").name
    ('task', 'engine')
    """
    if name in CHARTS:
        return CHARTS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ChartError(name, "name", "is not a chart", f"use one of {', '.join(CHARTS)}, or 'module:NAME'")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's module can raise anything
        remedy = "correct it, or put its folder on Python's path"
        raise ChartError(
            name, "name", f"cannot be imported: {type(error).__name__}: {error}", remedy
        ) from error
    if not isinstance(found, (Chart, Tree)):
        kind = type(found).__name__
        raise ChartError(name, "name", f"is {kind}, neither a Chart nor a Tree", "name a chart or a tree")
    return found


def figure(shown: Embedding, *, number: int = 1) -> str:
    """Return the HTML of a picture on a page.

    Parameters
    ----------
    shown
        The chart or tree.
    number
        The position of the picture on its page, from 1. It makes the ids unique on the page.

    Raises
    ------
    ChartError
        As for [`Embedding.text`][statecharts.embedding.Embedding.text].

    Examples
    --------
    >>> html = figure(Embedding("task", state="RETRYING", caption="A task that is tried again"))
    >>> html.count("<svg"), "A task that is tried again</figcaption>" in html
    (1, True)
    """
    svg = _with_own_classes(_scalable(shown.text("svg")))
    for part in ("title", "desc"):
        svg = re.sub(rf'(?<=[" ])([\w-]+)-{part}(?=[" ])', rf"\1-{number}-{part}", svg, count=2)
    label = xml(shown.caption or shown.name)
    caption = f"<figcaption>{xml(shown.caption)}</figcaption>" if shown.caption else ""
    return (
        f'<figure class="statechart-figure"><style>{_STYLED}</style>'
        f'<div tabindex="0" role="group" aria-label="{label}">{svg}</div>{caption}</figure>'
    )


def _with_own_classes(svg: str) -> str:
    """Prefix the picture's class names, so that no style of the page, such as ``.card``, applies to it."""

    def rename(found: re.Match[str]) -> str:
        names = [name if name == "statechart" else f"statechart-{name}" for name in found[2].split()]
        return f'{found[1]}class="{" ".join(names)}"'

    start, style, rest = re.split(r"(<style>.*?</style>)", svg, maxsplit=1, flags=re.DOTALL)
    style = re.sub(r"(?<=[ }\n,])\.(?!statechart\b)([a-z])", r".statechart-\1", style)
    return start + style + re.sub(r'(<[a-z][^<>]*? )class="([^"]*)"', rename, rest)


def _scalable(svg: str) -> str:
    """Let a picture shrink with its column, but only as far as its text stays readable."""
    width = float(re.search(r' width="([\d.]+)"', svg)[1])  # type: ignore[index]  # our pictures have a width
    size = f"width:100%;height:auto;min-width:{width * _SMALLEST:.0f}px;max-width:{width:.0f}px"
    return svg.replace(' width="', f' style="{size}" width="', 1)


def split_states(text: str) -> tuple[str, ...]:
    """Split a list of states that is separated by spaces or commas."""
    return tuple(text.replace(",", " ").split())
