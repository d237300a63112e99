"""What happened in numbers that only grow, for those who draw curves of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayvisor import records as r
from rayvisor.status import is_well

if TYPE_CHECKING:
    from rayvisor.faults import Fault
    from rayvisor.records import Record

__all__ = ["BOUNDS", "OTHER", "Counters", "Recoveries"]

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Seconds; what takes longer than the last one is in none but the sum."""
OTHER = "OTHER"
"""A restart for no fault of the child's own."""
NAMES_KEPT = 10_000
"""So many names are counted by without a look at which of them are still there."""
UNWELL_KEPT = 10_000
"""Of so many children it is known since when they are not well."""


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


class Counters:
    """Takes records and counts them; nothing that it counts ever falls.

    Parameters
    ----------
    named
        The name by which a child is counted: instances of a template share one, so that there are no more
        names than a program has specs.
    present
        The children that there are: of others nothing is kept for long.
    """

    def __init__(self, named: Callable[[str], str], present: Callable[[], Collection[str]]) -> None:
        self._named = named
        self._present = present
        self._tidy_above = NAMES_KEPT
        self._unwell: dict[str, tuple[float, str]] = {}
        """Since when, and the class of the last fault; empty once it has been the cause of a restart."""
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
                self._faulty(fault)
            case r.DecisionMade():
                self.decisions[self._named(record.child), record.decision] += 1
            case _:
                pass

    def _faulty(self, fault: Fault) -> None:
        self.faults[self._named(fault.child), str(fault.fault_class)] += 1
        since, _ = self._unwell.get(fault.child, (fault.at, ""))
        self._unwell[fault.child] = since, str(fault.fault_class)
        if len(self._unwell) > UNWELL_KEPT:
            del self._unwell[next(iter(self._unwell))]
        if len(self.faults) > self._tidy_above:
            self._discard_removed()

    def _changed(self, record: r.StateChanged) -> None:
        child = record.child
        if record.after == "RESTARTING.STARTING" != record.before and record.incarnation > 1:
            since, why = self._unwell.get(child, (0.0, ""))
            self.restarts[self._named(child), why or OTHER] += 1
            if why:
                self._unwell[child] = since, ""
            if len(self.restarts) > self._tidy_above:
                self._discard_removed()
        well = is_well(record.after)
        if child in self._unwell and (well or record.after.startswith("DEAD")):
            since, _ = self._unwell.pop(child)
            if well:
                above = self._named(child).rpartition("/")[0]
                self.recoveries.setdefault(above, Recoveries()).add(max(0.0, record.at - since))

    def _discard_removed(self) -> None:
        """Forget what was counted by names that no child has any more."""
        names = {self._named(child) for child in self._present()}
        for counted in (self.faults, self.restarts, self.decisions):
            for key in [key for key in counted if key[0] not in names]:
                del counted[key]
        for above in [name for name in self.recoveries if name and name not in names]:
            del self.recoveries[above]
        self._tidy_above = max(NAMES_KEPT, 2 * len(self.faults), 2 * len(self.restarts))
