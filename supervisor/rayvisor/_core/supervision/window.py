"""The sliding window over a supervisor's restarts."""

from __future__ import annotations

from collections import deque

__all__ = ["Window"]


class Window:
    """Counts restarts within a period.

    Adding costs the same however long the history is: entries are dropped as they grow too old, and no more
    than ``intensity`` ever stay, since with one more the supervisor gives up. The window is continuous: a
    restart counts while its age is at most the period. OTP counts in whole seconds (matrix I6).
    """

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self, now: float, intensity: int, period: float) -> bool:
        """Count a restart at ``now``; True while the window holds at most ``intensity``."""
        self._times.append(now)
        return self.count(now, period) <= intensity

    def count(self, now: float, period: float) -> int:
        """Return how many restarts are in the window at ``now``, which never goes back."""
        times = self._times
        oldest = now - period
        while times and times[0] < oldest:
            times.popleft()
        return len(times)

    def __len__(self) -> int:
        return len(self._times)
