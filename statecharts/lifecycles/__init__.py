"""The charts of the children, tasks and supervisors of rayvisor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from statecharts.chart import Chart
from statecharts.lifecycles.actor import ACTOR
from statecharts.lifecycles.engine import ENGINE
from statecharts.lifecycles.supervisor import SUPERVISOR
from statecharts.lifecycles.task import TASK

__all__ = ["ACTOR", "CHARTS", "ENGINE", "SUPERVISOR", "TASK"]

CHARTS: Final[Mapping[str, Chart]] = MappingProxyType(
    {chart.name: chart for chart in (ACTOR, ENGINE, TASK, SUPERVISOR)}
)
"""All charts by name."""
