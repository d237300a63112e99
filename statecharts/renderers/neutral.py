"""JSON: the chart part by part, for programs that draw it themselves."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from statecharts.chart import Transition
from statecharts.drawing import Drawing

__all__ = ["render_json"]


def render_json(drawing: Drawing) -> str:
    """Render a chart as JSON.

    The keys are those of the classes in ``statecharts``; ``live`` is null if nothing is highlighted.
    """
    return json.dumps(_model(drawing), indent=2, ensure_ascii=False) + "\n"


def _model(drawing: Drawing) -> dict[str, Any]:
    chart = drawing.chart
    return {
        "kind": "statechart",
        "version": 1,
        "name": chart.name,
        "doc": chart.doc,
        "initial": chart.initial,
        "flags": list(chart.flags),
        "events": list(chart.events),
        "states": [
            {
                "name": state.name,
                "doc": state.doc,
                "leaves": [
                    {"name": leaf.name, "doc": leaf.doc, "final": leaf.final} for leaf in state.leaves
                ],
            }
            for state in chart.states
        ],
        "choices": [
            {
                "name": choice.name,
                "doc": choice.doc,
                "branches": [{"flag": branch.flag, "target": branch.target} for branch in choice.branches],
                "otherwise": choice.otherwise,
            }
            for choice in chart.choices
        ],
        "transitions": [_transition(one) for one in chart.transitions],
        "live": None if drawing.at is None and not drawing.path and not drawing.passes else _live(drawing),
    }


def _live(drawing: Drawing) -> dict[str, Any]:
    passes = {"passes": [asdict(one) for one in drawing.passes]} if drawing.passes else {}
    return {"at": drawing.at, "path": list(drawing.path), **passes}


def _transition(one: Transition) -> dict[str, Any]:
    return {
        "source": one.source,
        "event": one.event,
        "target": one.target,
        "when": list(one.when),
        "unless": list(one.unless),
        "sets": list(one.sets),
        "clears": list(one.clears),
        "doc": one.doc,
    }
