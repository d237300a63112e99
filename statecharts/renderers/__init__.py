"""Charts and trees as text: the renderers, by the name of their format.

>>> from statecharts.lifecycles import TASK
>>> print(render(TASK, "mermaid").splitlines()[0])
stateDiagram-v2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statecharts._registry import CHART_RENDERERS, register
from statecharts.chart import Chart
from statecharts.drawing import Drawing, Pass
from statecharts.errors import ChartError
from statecharts.renderers.dot import render_dot
from statecharts.renderers.mermaid import render_mermaid
from statecharts.renderers.neutral import render_json
from statecharts.renderers.scxml import render_scxml
from statecharts.renderers.svg import render_svg
from statecharts.renderers.table import render_table
from statecharts.renderers.trees import (
    render_tree_dot,
    render_tree_json,
    render_tree_mermaid,
    render_tree_scxml,
    render_tree_svg,
    render_tree_table,
)
from statecharts.tree import register_tree_renderer

__all__ = ["Renderer", "formats", "register_renderer", "render", "render_drawing"]

Renderer = Callable[[Drawing], str]
"""Turns a drawing (``drawing.chart`` is the chart) into text: deterministic, ending with a newline."""


def formats() -> tuple[str, ...]:
    """Return the names of the formats, in the order of their registration."""
    return tuple(CHART_RENDERERS)


def register_renderer(name: str, renderer: Renderer) -> None:
    """Add a format.

    Parameters
    ----------
    name
        The name that [`render`][statecharts.render] and ``rayvisor chart --format`` take.
    renderer
        Makes the text of a [`Drawing`][statecharts.Drawing].

    Raises
    ------
    ValueError
        If the name is empty or already registered.
    """
    register(CHART_RENDERERS, name, renderer)


def render(
    chart: Chart,
    format: str,
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
        ``"table"`` (Markdown) and ``"json"`` are always available.
    at
        The current position, highlighted: a leaf, or ``"STATE.LEAF"``.
    path
        The earlier leaves, highlighted faintly.
    passes
        The transitions taken so far; their counts are shown beside the arrows.

    Raises
    ------
    ChartError
        If the format or a leaf does not exist; the message lists the known ones.

    Examples
    --------
    >>> from statecharts.lifecycles import TASK
    >>> print(render(TASK, "table", at="RUNNING").splitlines()[6])
    Now in RUNNING.
    """
    return render_drawing(Drawing(chart, at, tuple(path), tuple(passes)), format)


def render_drawing(drawing: Drawing, format: str) -> str:
    """Render a drawing, which holds chart and state; otherwise like [`render`][statecharts.render]."""
    renderer = CHART_RENDERERS.get(format)
    if renderer is None:
        known = ", ".join(formats())
        raise ChartError(drawing.chart.name, f"format {format!r}", "has no renderer", f"use one of {known}")
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

for _name, _tree_renderer in (
    ("mermaid", render_tree_mermaid),
    ("dot", render_tree_dot),
    ("svg", render_tree_svg),
    ("scxml", render_tree_scxml),
    ("table", render_tree_table),
    ("json", render_tree_json),
):
    register_tree_renderer(_name, _tree_renderer)
