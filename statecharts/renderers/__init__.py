"""Charts as text: a registry of renderers, by the name of their format.

>>> from statecharts.lifecycles import TASK
>>> print(render(TASK, "mermaid").splitlines()[0])
stateDiagram-v2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statecharts._registry import CHARTS, register
from statecharts.chart import Chart
from statecharts.drawing import Drawing, Pass
from statecharts.errors import ChartError
from statecharts.renderers.dot import render_dot
from statecharts.renderers.mermaid import render_mermaid
from statecharts.renderers.neutral import render_json
from statecharts.renderers.scxml import render_scxml
from statecharts.renderers.svg import render_svg
from statecharts.renderers.table import render_table

__all__ = ["Renderer", "formats", "register_renderer", "render", "render_drawing"]

Renderer = Callable[[Drawing], str]
"""Makes text of a drawing (``drawing.chart`` is the chart): always the same, ending with a newline."""


def formats() -> tuple[str, ...]:
    """Name the formats there are, in the order in which they were registered."""
    return tuple(CHARTS)


def register_renderer(name: str, renderer: Renderer) -> None:
    """Add a format.

    Parameters
    ----------
    name
        What [`render`][statecharts.render] and ``rayvisor chart --format`` call it.
    renderer
        Makes the text of a [`Drawing`][statecharts.Drawing].

    Raises
    ------
    ValueError
        When the name is empty or taken.
    """
    register(CHARTS, name, renderer)


def render(
    chart: Chart,
    format: str,  # noqa: A002 - the word that the command line uses, too
    *,
    at: str | None = None,
    path: Sequence[str] = (),
    passes: Sequence[Pass] = (),
) -> str:
    """Render a chart.

    Parameters
    ----------
    chart
        The chart.
    format
        One of [`formats`][statecharts.formats]; ``"mermaid"``, ``"dot"``, ``"svg"``, ``"scxml"``,
        ``"table"`` (Markdown) and ``"json"`` are always there.
    at
        Where the thing is now, which is lit: a leaf, or ``"STATE.LEAF"``.
    path
        Where it was before, which is lit a little.
    passes
        How often it took which way, which is said beside it.

    Raises
    ------
    ChartError
        When there is no such format, or no such leaf; it names those that there are.

    Examples
    --------
    >>> from statecharts.lifecycles import TASK
    >>> print(render(TASK, "table", at="RUNNING").splitlines()[6])
    Now in RUNNING.
    """
    return render_drawing(Drawing(chart, at, tuple(path), tuple(passes)), format)


def render_drawing(drawing: Drawing, format: str) -> str:  # noqa: A002 - as above
    """Render a drawing; as [`render`][statecharts.render], where chart and state are together already."""
    renderer = CHARTS.get(format)
    if renderer is None:
        known = ", ".join(formats())
        raise ChartError(
            drawing.chart.name, f"format {format!r}", "there is no renderer for it", f"use one of {known}"
        )
    return renderer(drawing)


for _name, _renderer in (
    ("mermaid", render_mermaid),
    ("dot", render_dot),
    ("svg", render_svg),
    ("scxml", render_scxml),
    ("table", render_table),
    ("json", render_json),
):
    register_renderer(_name, _renderer)
