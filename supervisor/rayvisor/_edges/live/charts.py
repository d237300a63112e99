"""The chart of a child in its current state, with its last transitions, and its JSON form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from rayvisor._edges.live.history import STEPS_KEPT
from rayvisor.status import chart_of
from statecharts import Drawing, Pass
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from rayvisor._edges.live.history import History
    from rayvisor.status import Node

__all__ = ["drawing_form", "drawing_from", "drawing_of"]


def drawing_of(node: Node, history: History) -> Drawing:
    """Return the chart of a child, with its state, its earlier states, and the counts of its transitions."""
    chart = CHARTS[chart_of(node)]
    steps = [place for place, *_ in history.steps.get(node.path, ())]
    if 0 < len(steps) < STEPS_KEPT:  # complete: the first transition left the initial state
        steps.insert(0, chart.initial)
    return Drawing(
        chart,
        at=node.leaf or node.state,
        path=tuple(steps[:-1]),  # the last step is the current state
        passes=tuple(Pass(*each) for each in history.passes(node.path)),
    )


def drawing_form(drawing: Drawing) -> dict[str, Any]:
    """Return the JSON form of a drawing."""
    passes = [astuple(each) for each in drawing.passes]
    return {"chart": drawing.chart.name, "at": drawing.at, "path": list(drawing.path), "passes": passes}


def drawing_from(form: Mapping[str, Any]) -> Drawing:
    """Return the drawing of a form made by `drawing_form`."""
    passes = tuple(Pass(*each) for each in form["passes"])
    return Drawing(CHARTS[form["chart"]], form["at"], tuple(form["path"]), passes)
