"""The one error of this package."""

from __future__ import annotations

__all__ = ["ChartError"]


class ChartError(ValueError):
    """A chart is invalid, or a request about a chart cannot be answered.

    Parameters
    ----------
    chart
        Name of the chart.
    where
        The invalid state, event or other part, as it is written in the chart.
    problem
        What is wrong with it.
    remedy
        How to fix it.
    """

    def __init__(self, chart: str, where: str, problem: str, remedy: str) -> None:
        super().__init__(chart, where, problem, remedy)
        self.chart = chart
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"chart {self.chart!r}: {self.where}: {self.problem}; {self.remedy}"
