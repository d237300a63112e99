"""Statecharts as data: checked, compiled to a table, stepped purely, rendered.

A chart says what can happen to a thing; a table says what one event makes of where it is:

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
from statecharts.errors import ChartError
from statecharts.renderers import Renderer, formats, register_renderer, render
from statecharts.table import Configuration, Table, compile_chart

__all__ = [
    "Branch",
    "Chart",
    "ChartError",
    "Choice",
    "Configuration",
    "Leaf",
    "Renderer",
    "State",
    "Table",
    "Transition",
    "compile_chart",
    "formats",
    "from_each",
    "register_renderer",
    "render",
]
