"""The recent history of a tree: faults with their outcomes, and the transitions of each child. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from rayvisor import records as r
from rayvisor.status import is_well

if TYPE_CHECKING:
    from rayvisor.faults import Fault
    from rayvisor.records import Record

__all__ = ["FAULTS_KEPT", "STEPS_KEPT", "History"]

FAULTS_KEPT = 100
STEPS_KEPT = 10
LONGEST_TEXT = 2000
CHILDREN_KEPT = 1000
"""Up to this many children are kept without checking which of them still exist."""
_NO_RESTART_DECISIONS = frozenset({"in_place", "observe"})


class History:
    """Collects from records, within bounds, what readers of a tree are shown.

    Parameters
    ----------
    wall
        Offset, in seconds, from the records' clock to the time since the epoch.
    present
        Returns the children that exist; the history of others is discarded after a while.
    """

    def __init__(self, wall: float, present: Callable[[], Collection[str]]) -> None:
        self.wall = wall
        self._present = present
        self._tidy_above = CHILDREN_KEPT
        self._open: Counter[str] = Counter()
        self._numbers = 0
        self._delays: dict[str, float] = {}
        self._waits: dict[str, float] = {}
        self._passes: dict[str, dict[tuple[str, str, str], list[float]]] = {}
        self._since: dict[str, float] = {}
        self.steps: dict[str, deque[tuple[str, str, int, float]]] = {}
        """For each child: state, event, incarnation and time of its last transitions, oldest first."""
        self.faults: deque[dict[str, Any]] = deque(maxlen=FAULTS_KEPT)
        """Oldest first. A changed fault is replaced by a new object with the same ``id``."""

    def take(self, record: Record) -> None:
        """Take the next record."""
        match record:
            case r.StateChanged():
                self._changed(record)
            case r.FaultSeen(fault=fault):
                self._fault(fault, record.at)
            case r.DecisionMade():
                self._decided(record)
            case _:
                pass

    def due(self, child: str) -> float | None:
        """Return when a waiting child will be started, in seconds since the epoch."""
        began, delay = self._waits.get(child), self._delays.get(child)
        return None if began is None or not delay else round(began + delay + self.wall, 3)

    def passes(self, child: str) -> list[tuple[str, str, str, int, float]]:
        """Return the transitions of a child: source, event, target, count, total seconds in the source."""
        return [
            (*transition, int(times), round(seconds, 3))
            for transition, (times, seconds) in self._passes.get(child, {}).items()
        ]

    def _discard_removed(self) -> None:
        """Discard the history of removed children from time to time."""
        if len(self._passes) <= self._tidy_above:
            return
        children = self._present()
        self._tidy_above = max(CHILDREN_KEPT, 2 * len(children))
        for known in (self.steps, self._delays, self._waits, self._passes, self._since, self._open):
            for child in [each for each in known if each not in children]:
                del known[child]

    def _changed(self, record: r.StateChanged) -> None:
        self._passed(record)
        self._discard_removed()
        if record.before == record.after:
            return
        child, leaf = record.child, record.after.rpartition(".")[2]
        steps = self.steps.setdefault(child, deque(maxlen=STEPS_KEPT))
        steps.append((record.after, record.event, record.incarnation, self._time(record.at)))
        if leaf == "BACKOFF":
            self._waits[child] = record.at
        else:
            self._waits.pop(child, None)
        up = is_well(record.after)
        if up or record.after.startswith("DEAD"):
            self._closed(child, record.at, came_back=up)

    def _passed(self, record: r.StateChanged) -> None:
        """Count a transition and the time spent in its source."""
        transitions = self._passes.setdefault(record.child, {})
        transition = (record.before, record.event, record.after)
        total = transitions.setdefault(transition, [0.0, 0.0])
        total[0] += 1
        total[1] += record.at - self._since.get(record.child, record.at)
        if record.before != record.after:
            self._since[record.child] = record.at

    def _fault(self, fault: Fault, at: float) -> None:
        self._numbers += 1
        self._open[fault.child] += 1
        self.faults.append(
            {
                "id": self._numbers,
                "child": fault.child,
                "incarnation": fault.incarnation,
                "at": self._time(at),
                "class": str(fault.fault_class),
                "root": str(fault.root)[:LONGEST_TEXT],
                "chain": [str(cause)[:LONGEST_TEXT] for cause in fault.causes[:-1]][-10:],
                "phase": fault.phase,
                "source": fault.source,
                "place": fault.place,
                "log": fault.log_file,
                "decision": None,
                "recovered": None,
                "ended": False,
            }
        )

    def _decided(self, record: r.DecisionMade) -> None:
        self._delays[record.child] = record.delay
        for number, fault in enumerate(reversed(self.faults), 1):
            if fault["child"] == record.child and fault["incarnation"] == record.incarnation:
                if fault["decision"] is None or fault["decision"]["what"] in _NO_RESTART_DECISIONS:
                    decision = {
                        "what": record.decision,
                        "why": record.why,
                        "delay": round(record.delay, 3),
                        "restarts": record.restarts,
                        "intensity": record.intensity,
                    }
                    self.faults[-number] = {**fault, "decision": decision}
                return

    def _closed(self, child: str, at: float, *, came_back: bool) -> None:
        """Set the recovery time of every open fault of a child, or mark it as ended."""
        if not self._open.pop(child, 0):
            return
        for number, fault in enumerate(self.faults):
            if fault["child"] == child and fault["recovered"] is None and not fault["ended"]:
                taken = round(max(0.0, self._time(at) - fault["at"]), 3)
                self.faults[number] = {**fault, "recovered": taken} if came_back else {**fault, "ended": True}

    def _time(self, at: float) -> float:
        return round(at + self.wall, 3)
