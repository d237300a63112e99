"""What happened in numbers that only grow, for those who draw curves of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayvisor import records as r
from rayvisor._live.story import is_well

if TYPE_CHECKING:
    from rayvisor.records import Record

__all__ = ["BOUNDS", "OTHER", "Recoveries", "Tallies"]

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Seconds; what takes longer than the last one is in none but the sum."""
OTHER = "OTHER"
"""A restart for no fault of the child's own."""


@dataclass(slots=True)
class Recoveries:
    """How long children took until they were well again."""

    within: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    """How many took at most as long as each of the bounds."""
    seconds: float = 0.0
    times: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.seconds += seconds
        self.times += 1
        for number, bound in enumerate(BOUNDS):
            self.within[number] += seconds <= bound


class Tallies:
    """Takes records and counts them; nothing that it counts ever falls.

    Parameters
    ----------
    named
        The name by which a child is counted: instances of a template share one, so that there are no more
        names than a program has specs.
    """

    def __init__(self, named: Callable[[str], str]) -> None:
        self._named = named
        self._why: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self.faults: Counter[tuple[str, str]] = Counter()
        """By child and class."""
        self.restarts: Counter[tuple[str, str]] = Counter()
        """By child, and the class of the fault that was the cause."""
        self.decisions: Counter[tuple[str, str]] = Counter()
        """By child and what was decided."""
        self.recoveries: dict[str, Recoveries] = {}
        """By supervisor."""
        self.records: Counter[str] = Counter()
        """By their type."""

    def take(self, record: Record) -> None:
        """Take the next record."""
        self.records[type(record).__name__] += 1
        match record:
            case r.StateChanged():
                self._changed(record)
            case r.FaultSeen(fault=fault):
                self.faults[self._named(fault.child), str(fault.fault_class)] += 1
                self._why[fault.child] = str(fault.fault_class)
                self._since.setdefault(fault.child, fault.at)
            case r.DecisionMade():
                self.decisions[self._named(record.child), record.decision] += 1
            case _:
                pass

    def _changed(self, record: r.StateChanged) -> None:
        child = record.child
        if record.after == "RESTARTING.STARTING" != record.before and record.incarnation > 1:
            self.restarts[self._named(child), self._why.pop(child, OTHER)] += 1
        well = is_well(record.after)
        if not well and not record.after.startswith("DEAD"):
            return
        self._why.pop(child, None)
        since = self._since.pop(child, None)
        if well and since is not None:
            above = self._named(child).rpartition("/")[0]
            self.recoveries.setdefault(above, Recoveries()).add(max(0.0, record.at - since))
