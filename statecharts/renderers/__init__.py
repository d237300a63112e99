"""Charts as text: a registry of renderers, by the name of their format.

>>> from statecharts.lifecycles import TASK
>>> print(render(TASK, "mermaid").splitlines()[0])
stateDiagram-v2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from statecharts.chart import Chart
from statecharts.errors import ChartError
from statecharts.renderers.mermaid import render_mermaid
from statecharts.renderers.table import render_table

__all__ = ["Renderer", "formats", "register_renderer", "render"]

Renderer = Callable[[Chart], str]
"""Makes text of a chart: the same text for the same chart, ending with a newline."""

_RENDERERS: Final[dict[str, Renderer]] = {"mermaid": render_mermaid, "table": render_table}


def formats() -> tuple[str, ...]:
    """Name the formats there are, in the order in which they were registered."""
    return tuple(_RENDERERS)


def register_renderer(name: str, renderer: Renderer) -> None:
    """Add a format.

    Parameters
    ----------
    name
        What [`render`][statecharts.render] and ``rayvisor chart --format`` call it.
    renderer
        Makes the text.

    Raises
    ------
    ValueError
        When the name is empty or taken.
    """
    if not name:
        raise ValueError("name='': a format needs a name")
    if name in _RENDERERS:
        raise ValueError(f"name={name!r}: there is a renderer of this name already; choose another one")
    _RENDERERS[name] = renderer


def render(chart: Chart, format: str) -> str:  # noqa: A002 - the word that the command line uses, too
    """Render a chart.

    Raises
    ------
    ChartError
        When there is no such format; it names those that there are.
    """
    renderer = _RENDERERS.get(format)
    if renderer is None:
        known = ", ".join(formats())
        raise ChartError(
            chart.name, f"format {format!r}", "there is no renderer for it", f"use one of {known}"
        )
    return renderer(chart)
