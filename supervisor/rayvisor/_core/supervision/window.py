"""The sliding window over a supervisor's restarts."""

from __future__ import annotations

from collections import deque

__all__ = ["Window"]


class Window:
    """Counts restarts within a period, and says when there are too many.

    Adding costs the same however long the history is: entries leave as they grow too old, and no more
    than ``intensity`` ever stay, since one more means giving up. Unlike OTP, which counts in whole
    seconds (matrix I6), the window is continuous: a restart counts while its age is at most the period.
    """

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self, now: float, intensity: int, period: float) -> bool:
        """Count a restart at ``now``; True while there are not more than ``intensity`` in the window."""
        self._times.append(now)
        return self.count(now, period) <= intensity

    def count(self, now: float, period: float) -> int:
        """How many restarts are in the window at ``now``, which never goes back."""
        times = self._times
        oldest = now - period
        while times and times[0] < oldest:
            times.popleft()
        return len(times)

    def __len__(self) -> int:
        return len(self._times)
