"""A chart, or a tree, as part of a page: what the ways into Sphinx and into MkDocs have in common.

[`figure`][statecharts.embedding.figure] makes a piece of HTML that stands by itself: the picture as SVG, with
the colours of the page's own light or dark theme, wide pictures to be moved sideways on narrow screens.
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

__all__ = ["Embedding", "figure", "find"]

_THEMES = ('[data-theme="{}"]', '[data-md-color-scheme="{}"]')
"""Where themes say what the reader chose: Sphinx's (Furo, PyData, Book), and Material for MkDocs."""
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
"""Of its natural size; below that a picture is moved sideways in its frame."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """What is to be shown on a page, and how much of it is lit.

    Parameters
    ----------
    name
        ``"actor"``, ``"engine"``, ``"task"`` or ``"supervisor"`` for rayvisor's own charts, or
        ``"module:NAME"`` for a [`Chart`][statecharts.Chart] or a [`Tree`][statecharts.Tree] of yours; the
        module is imported.
    state
        The leaf it is in, which is lit (charts only).
    path
        Where it was before, which is lit a little (charts only).
    caption
        Stands below the picture.
    """

    name: str
    state: str | None = None
    path: tuple[str, ...] = ()
    caption: str = ""

    def text(self, format: str) -> str:  # noqa: A002 - the word that the command line uses, too
        """Render it.

        Parameters
        ----------
        format
            One that charts (and trees, if it is one) can be rendered to.

        Raises
        ------
        ChartError
            When the name leads nowhere, or to something else, or there is no such state or format.
        """
        found = find(self.name)
        if isinstance(found, Chart):
            return render(found, format, at=self.state, path=self.path)
        if self.state is not None or self.path:
            raise ChartError(self.name, "state, path", "a tree's nodes bring their states", "leave these out")
        return render_tree(found, format)


def find(name: str) -> Chart | Tree:
    """Find a chart or a tree by its name on a page.

    Parameters
    ----------
    name
        As in [`Embedding`][statecharts.embedding.Embedding].

    Raises
    ------
    ChartError
        When there is nothing of that name, or it is neither a chart nor a tree.

    Examples
    --------
    >>> find("task").name, find("statecharts.lifecycles:ENGINE").name
    ('task', 'engine')
    """
    if name in CHARTS:
        return CHARTS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ChartError(name, "name", "is no chart", f"use one of {', '.join(CHARTS)}, or 'module:NAME'")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a module of the user's own can raise anything
        remedy = "correct it, or put its folder on Python's path"
        raise ChartError(
            name, "name", f"cannot be imported: {type(error).__name__}: {error}", remedy
        ) from error
    if not isinstance(found, (Chart, Tree)):
        raise ChartError(name, "name", f"is no Chart and no Tree, but {type(found).__name__}", "name another")
    return found


def figure(shown: Embedding, *, number: int = 1) -> str:
    """Make the HTML of a picture on a page.

    Parameters
    ----------
    shown
        What is shown.
    number
        The how-manieth on its page it is: no two may have the same ids.

    Raises
    ------
    ChartError
        As [`Embedding.text`][statecharts.embedding.Embedding.text].

    Examples
    --------
    >>> html = figure(Embedding("task", state="RETRYING", caption="A task that is tried again"))
    >>> html.count("<svg"), "A task that is tried again</figcaption>" in html
    (1, True)
    """
    svg = _apart(_scalable(shown.text("svg")))
    for part in ("title", "desc"):
        svg = re.sub(rf'(?<=[" ])([\w-]+)-{part}(?=[" ])', rf"\1-{number}-{part}", svg, count=2)
    label = xml(shown.caption or shown.name)
    caption = f"<figcaption>{xml(shown.caption)}</figcaption>" if shown.caption else ""
    return (
        f'<figure class="statechart-figure"><style>{_STYLED}</style>'
        f'<div tabindex="0" role="group" aria-label="{label}">{svg}</div>{caption}</figure>'
    )


def _apart(svg: str) -> str:
    """Give the picture's classes names that no page has: a theme's ``.card`` is not meant for it."""

    def rename(found: re.Match[str]) -> str:
        names = [name if name == "statechart" else f"statechart-{name}" for name in found[2].split()]
        return f'{found[1]}class="{" ".join(names)}"'

    start, style, rest = re.split(r"(<style>.*?</style>)", svg, maxsplit=1, flags=re.DOTALL)
    style = re.sub(r"(?<=[ }\n,])\.(?!statechart\b)([a-z])", r".statechart-\1", style)
    return start + style + re.sub(r'(<[a-z][^<>]*? )class="([^"]*)"', rename, rest)


def _scalable(svg: str) -> str:
    """Let a picture shrink with its column, but not so far that its letters cannot be read."""
    width = float(re.search(r' width="([\d.]+)"', svg)[1])  # type: ignore[index]  # pictures of ours have one
    size = f"width:100%;height:auto;min-width:{width * _SMALLEST:.0f}px;max-width:{width:.0f}px"
    return svg.replace(' width="', f' style="{size}" width="', 1)


def words(text: str) -> tuple[str, ...]:
    """Read a list of states as one writes it on a page: separated by spaces or commas."""
    return tuple(text.replace(",", " ").split())
