"""The chart of a child as it is now, with the way it took; and that as JSON. Pure."""

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
    """The chart of a child, with its state, its last ones, and what is known of each way it took."""
    chart = CHARTS[chart_of(node)]
    steps = [place for place, *_ in history.steps.get(node.path, ())]
    if 0 < len(steps) < STEPS_KEPT:  # all of them: the first one led out of where every child begins
        steps.insert(0, chart.initial)
    return Drawing(
        chart,
        at=node.leaf or node.state,
        path=tuple(steps[:-1]),  # the last one is where it is
        passes=tuple(Pass(*each) for each in history.passes(node.path)),
    )


def drawing_form(drawing: Drawing) -> dict[str, Any]:
    """What goes over the socket."""
    passes = [astuple(each) for each in drawing.passes]
    return {"chart": drawing.chart.name, "at": drawing.at, "path": list(drawing.path), "passes": passes}


def drawing_from(form: Mapping[str, Any]) -> Drawing:
    """The drawing that `drawing_form` wrote."""
    passes = tuple(Pass(*each) for each in form["passes"])
    return Drawing(CHARTS[form["chart"]], form["at"], tuple(form["path"]), passes)
