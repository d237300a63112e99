"""The output of a benchmark: a table, and one JSON object as the last line for programs."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report", "Row", "Target", "announced"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement with all its values."""

    what: str
    values: tuple[float, ...]
    unit: str
    peer: bool = False
    """Whether it is a figure of another system, for comparison."""

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """Return the row as a plain object."""
        return {
            "what": self.what,
            "unit": self.unit,
            "peer": self.peer,
            "median": _short(self.median),
            "min": _short(min(self.values)),
            "max": _short(max(self.values)),
            "values": [_short(value) for value in self.values],
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A target for a figure."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return the target as a plain object."""
        bound = "at_most" if self.at_most else "at_least"
        return {"what": self.what, "value": _short(self.value), bound: self.limit, "met": self.met}


@dataclass(slots=True)
class Report:
    """The result of one benchmark."""

    benchmark: str
    engine: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    began: float = field(default_factory=time.monotonic)

    def add(self, what: str, values: Sequence[float], unit: str, *, peer: bool = False) -> Row | None:
        """Add a row; a row without values is left out."""
        if not values:
            return None
        row = Row(what, tuple(values), unit, peer)
        self.rows.append(row)
        return row

    def as_json(self) -> dict[str, Any]:
        """Return the report as a plain object."""
        return {
            "benchmark": self.benchmark,
            "engine": self.engine,
            "rows": [row.as_json() for row in self.rows],
            "targets": [target.as_json() for target in self.targets],
            "notes": self.notes,
            "cpus": os.cpu_count(),
            "load_before": round(self.load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "seconds": round(time.monotonic() - self.began, 1),
        }

    def show(self, *, as_json: bool) -> None:
        """Print the table, and with ``as_json`` the JSON object as the last line."""
        wide = max((len(row.what) for row in self.rows), default=0) + 2
        print(f"{self.benchmark}, {self.engine} engine, {os.cpu_count()} CPUs, load {self.load_before:.1f}")
        print(f"  {'':{wide}}{'median':>10}{'min':>10}{'max':>10}{'runs':>6}")
        for row in self.rows:
            low, high = min(row.values), max(row.values)
            name = f"{row.what} *" if row.peer else row.what
            numbers = "".join(f"{_short(value):>10g}" for value in (row.median, low, high))
            print(f"  {name:{wide}}{numbers}{len(row.values):>6}  {row.unit}")
        if any(row.peer for row in self.rows):
            print("  * for comparison, without rayvisor")
        for target in self.targets:
            sign, result = ("<=" if target.at_most else ">="), ("met" if target.met else "MISSED")
            print(f"  {result}: {target.what}: {_short(target.value):g} {sign} {target.limit:g}")
        if as_json:
            print(json.dumps(self.as_json()), flush=True)


def announced(what: str, value: float, unit: str) -> float:
    """Print a value to standard error as soon as it is measured, since a run can last minutes; return it."""
    print(f"  {what}: {_short(value):g} {unit}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return value


def _short(value: float) -> float:
    return float(f"{value:.4g}")
