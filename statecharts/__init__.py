"""Statecharts as data: validated, compiled to a transition table, stepped without side effects, rendered.

A chart describes the states of an object and the events that change them. A table computes the configuration
that follows from a configuration and an event:

    >>> from statecharts.lifecycles import ACTOR
    >>> table = compile_chart(ACTOR)
    >>> here = table.initial
    >>> for event in ("started", "pause", "fault", "backoff", "start", "started"):
    ...     here = table.step(here, event) or here
    >>> print(here)
    PAUSED.REQUESTED {REQUESTED}
"""

from __future__ import annotations

from statecharts.chart import Branch, Chart, Choice, Leaf, State, Transition, from_each
from statecharts.drawing import Arrow, Drawing, Pass
from statecharts.errors import ChartError
from statecharts.renderers import Renderer, formats, register_renderer, render, render_drawing
from statecharts.table import Configuration, Table, compile_chart
from statecharts.tree import Tree, TreeRenderer, register_tree_renderer, render_tree, tree_formats

__all__ = [
    "Arrow",
    "Branch",
    "Chart",
    "ChartError",
    "Choice",
    "Configuration",
    "Drawing",
    "Leaf",
    "Pass",
    "Renderer",
    "State",
    "Table",
    "Transition",
    "Tree",
    "TreeRenderer",
    "compile_chart",
    "formats",
    "from_each",
    "register_renderer",
    "register_tree_renderer",
    "render",
    "render_drawing",
    "render_tree",
    "tree_formats",
]
