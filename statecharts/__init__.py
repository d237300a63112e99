"""Statecharts as data: checked, compiled to a table, stepped purely, rendered.

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
from statecharts.table import Configuration, Table, compile_chart

__all__ = [
    "Branch",
    "Chart",
    "ChartError",
    "Choice",
    "Configuration",
    "Leaf",
    "State",
    "Table",
    "Transition",
    "compile_chart",
    "from_each",
]
