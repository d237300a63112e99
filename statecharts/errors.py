"""The one error of this package."""

from __future__ import annotations

__all__ = ["ChartError"]


class ChartError(ValueError):
    """A chart, or a question put to one, does not hold.

    Parameters
    ----------
    chart
        Name of the chart.
    where
        The state, event or other part that is wrong, as it is written in the chart.
    problem
        What is wrong with it.
    remedy
        What to do about it.
    """

    def __init__(self, chart: str, where: str, problem: str, remedy: str) -> None:
        super().__init__(chart, where, problem, remedy)
        self.chart = chart
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"chart {self.chart!r}: {self.where}: {self.problem}; {self.remedy}"
