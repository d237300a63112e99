"""Counts events for the metrics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayvisor import records as r
from rayvisor._core.paths import split
from rayvisor.status import is_well

if TYPE_CHECKING:
    from rayvisor.faults import Fault
    from rayvisor.records import Record

__all__ = ["BOUNDS", "OTHER", "Counters", "Recoveries"]

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Upper bounds of the histogram's buckets, in seconds."""
OTHER = "OTHER"
"""Cause of a restart without a fault of the child itself."""
NAMES_KEPT = 10_000
"""Up to this many names are kept without checking which of them still exist."""
UNHEALTHY_KEPT = 10_000
"""Maximum number of unhealthy children whose first fault is remembered."""


@dataclass(slots=True)
class Recoveries:
    """A histogram of recovery times."""

    within: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    """For each bound, the number of recoveries that took at most that long."""
    seconds: float = 0.0
    times: int = 0

    def add(self, seconds: float) -> None:
        """Count a recovery."""
        self.seconds += seconds
        self.times += 1
        for number, bound in enumerate(BOUNDS):
            self.within[number] += seconds <= bound


class Counters:
    """Counts records; no count ever decreases.

    Parameters
    ----------
    name_of
        Returns the name under which a child is counted. Instances of a template share one name, so the
        number of names is bounded by the number of specs.
    present
        Returns the children that exist; the counts of others are discarded after a while.
    """

    def __init__(self, name_of: Callable[[str], str], present: Callable[[], Collection[str]]) -> None:
        self._name_of = name_of
        self._present = present
        self._tidy_above = NAMES_KEPT
        self._unhealthy: dict[str, tuple[float, str]] = {}
        """Time of the first fault, and class of the last one; empty once it has caused a restart."""
        self.faults: Counter[tuple[str, str]] = Counter()
        """Faults by child and class."""
        self.restarts: Counter[tuple[str, str]] = Counter()
        """Restarts by child and the class of the fault that caused them."""
        self.decisions: Counter[tuple[str, str]] = Counter()
        """Decisions by child and decision."""
        self.recoveries: dict[str, Recoveries] = {}
        """Recovery times by supervisor."""
        self.records: Counter[str] = Counter()
        """Records by type."""

    def take(self, record: Record) -> None:
        """Count the next record."""
        self.records[type(record).__name__] += 1
        match record:
            case r.StateChanged():
                self._changed(record)
            case r.FaultSeen(fault=fault):
                self._faulty(fault)
            case r.DecisionMade():
                self.decisions[self._name_of(record.child), record.decision] += 1
            case _:
                pass

    def _faulty(self, fault: Fault) -> None:
        self.faults[self._name_of(fault.child), str(fault.fault_class)] += 1
        since, _ = self._unhealthy.get(fault.child, (fault.at, ""))
        self._unhealthy[fault.child] = since, str(fault.fault_class)
        if len(self._unhealthy) > UNHEALTHY_KEPT:
            del self._unhealthy[next(iter(self._unhealthy))]
        if len(self.faults) > self._tidy_above:
            self._discard_removed()

    def _changed(self, record: r.StateChanged) -> None:
        child = record.child
        if record.after == "RESTARTING.STARTING" != record.before and record.incarnation > 1:
            since, why = self._unhealthy.get(child, (0.0, ""))
            self.restarts[self._name_of(child), why or OTHER] += 1
            if why:
                self._unhealthy[child] = since, ""
            if len(self.restarts) > self._tidy_above:
                self._discard_removed()
        well = is_well(record.after)
        if child in self._unhealthy and (well or record.after.startswith("DEAD")):
            since, _ = self._unhealthy.pop(child)
            if well:
                above = split(self._name_of(child))[0]
                self.recoveries.setdefault(above, Recoveries()).add(max(0.0, record.at - since))

    def _discard_removed(self) -> None:
        """Discard the counts of names that no child has any more."""
        names = {self._name_of(child) for child in self._present()}
        for counted in (self.faults, self.restarts, self.decisions):
            for key in [key for key in counted if key[0] not in names]:
                del counted[key]
        for above in [name for name in self.recoveries if name and name not in names]:
            del self.recoveries[above]
        self._tidy_above = max(NAMES_KEPT, 2 * len(self.faults), 2 * len(self.restarts))
