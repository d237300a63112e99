"""Detection of stalls: whether an engine or a host makes progress, decided from periodic checks. Pure.

A hung engine looks alive: its processes exist, and its flags report that it is healthy. But it delivers no
tokens while requests wait for them. It is checked every ``probe_interval`` seconds, and
[`StallWatch`][rayvisor._core.health.stall.StallWatch] decides:

- A check is a **miss** if requests wait, nothing has been delivered for a whole interval, and the processes
  do nothing. ``k`` misses among the last ``n`` checks: SUSPECT. One sign of life ends the suspicion.
- Nothing for ``stall_after`` seconds, and no computing in the latter half of them: STALLED. The first half
  does not count: an engine whose partner hangs spins for a second before it goes to sleep.
- Processes that **compute** get more time, up to ``step_limit``: a long prefill is not a hang. The load of a
  process's partners, which wait for it, does not count if the process itself is stopped (SIGSTOP).
- **Idle and suspicious**: no request waits, but a process is stopped, or requests that waited have left
  without an answer. Then a probe is sent: a request for one token, which waits and counts like any other.
- Time without checks (the watching process itself was delayed) does not count.

The same watch checks a host by its heartbeats, which are always awaited.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import NamedTuple

from rayvisor.specs import StallLimits

__all__ = ["BUSY_SHARE", "HealthAction", "Look", "StallWatch", "StartClock"]

BUSY_SHARE = 0.5
"""Share of a core from which a process counts as computing. One that polls for work takes about a tenth."""

_IDLE_SHARE = 0.5
"""Share of ``stall_after``, at its end, in which it must have done nothing."""


class Look(NamedTuple):
    """Observation of one check."""

    now: float
    progressed: float
    """Time of the last delivery; before the watch began if there was none."""
    waiting: int
    """How many requests wait, a probe included."""
    waiting_since: float = -math.inf
    """Time since which at least one request has waited continuously."""
    load: float = 0.0
    """Share of a core that the busiest process took, or wanted, since the last check."""
    stopped: bool = False
    """Whether one of the processes is stopped."""
    resting: bool = False
    """Whether it was asked to pause: no progress is expected then."""


class HealthAction(StrEnum):
    """The action that follows from a check."""

    NOTHING = "nothing"
    PROBE = "probe"
    """Send a request for one token: it is idle and suspicious."""
    SUSPECT = "suspect"
    CLEAR = "clear"
    """It is no longer suspect."""
    STALLED = "stalled"
    """It is to be ended; final."""


class StallWatch:
    """Decides from periodic checks whether something has stalled.

    Parameters
    ----------
    limits
        The limits.
    now
        Time at which the watch begins.

    >>> limits = StallLimits(stall_after=6.0, probe_interval=2.0, failure_threshold=(2, 3))
    >>> watch = StallWatch(limits, now=0.0)
    >>> [watch.look(Look(now, progressed=0.5, waiting=3)).value for now in (2.0, 4.0, 6.0, 8.0)]
    ['nothing', 'nothing', 'suspect', 'stalled']
    """

    def __init__(self, limits: StallLimits, now: float) -> None:
        self._limits = limits
        self._at = now
        self._progressed = -math.inf
        self._quiet_since = now
        self._still_since = now
        self._looks: deque[bool] = deque(maxlen=limits.failure_threshold[1])
        self.suspect = False
        self.stalled = False

    @property
    def silent(self) -> float:
        """For how many seconds nothing had been delivered at the last check, while requests waited."""
        return self._at - self._quiet_since

    def look(self, look: Look) -> HealthAction:
        """Process one check, and return the action that follows."""
        if self.stalled:
            return HealthAction.NOTHING
        self._skip_gap(look.now)
        if look.resting or look.progressed > self._progressed:
            self._progressed = look.progressed
            return self._fine(look)
        if not look.waiting:
            if self.suspect or look.stopped or any(self._looks):
                return HealthAction.PROBE
            return self._fine(look)
        if not any(self._looks):
            # Only the time in which requests waited counts.
            self._quiet_since = max(self._quiet_since, look.waiting_since)
        return self._judge(look)

    def next_look(self, now: float) -> float:
        """Return the time of the next check: after the interval, or earlier if a limit is reached before."""
        limits = self._limits
        ends = (
            max(self._quiet_since + limits.stall_after, self._still_since + _IDLE_SHARE * limits.stall_after),
            self._quiet_since + limits.step_limit,
        )
        return min([now + limits.probe_interval, *(end for end in ends if end > now)])

    def _skip_gap(self, now: float) -> None:
        interval = self._limits.probe_interval
        gap, self._at = now - self._at, now
        if gap > 2 * interval:
            self._quiet_since += gap - interval
            self._still_since += gap - interval

    def _fine(self, look: Look) -> HealthAction:
        since = look.now if look.resting or not look.waiting else max(self._quiet_since, look.progressed)
        self._quiet_since = self._still_since = since
        self._looks.clear()
        was, self.suspect = self.suspect, False
        return HealthAction.CLEAR if was else HealthAction.NOTHING

    def _judge(self, look: Look) -> HealthAction:
        limits = self._limits
        quiet = look.now - self._quiet_since
        computes = look.load >= BUSY_SHARE and not look.stopped
        if computes:
            self._still_since = look.now
        self._looks.append(not computes and quiet >= limits.probe_interval)
        still = look.now - self._still_since
        idle = quiet >= limits.stall_after and still >= _IDLE_SHARE * limits.stall_after
        if idle or quiet >= limits.step_limit:
            self.stalled = True
            return HealthAction.STALLED
        missed = sum(self._looks) >= limits.failure_threshold[0] or quiet >= limits.step_limit / 2
        if missed and not self.suspect:
            self.suspect = True
            return HealthAction.SUSPECT
        return HealthAction.NOTHING


class StartClock:
    """Deadline of a start: it counts from the last progress, within a limit for the whole start.

    >>> clock = StartClock(timeout=10.0, longest=25.0, now=0.0)
    >>> clock.due
    10.0
    >>> clock.progressed(8.0), clock.progressed(17.0)
    (18.0, 25.0)
    """

    def __init__(self, timeout: float, longest: float, now: float) -> None:
        self._timeout = timeout
        self._end = now + longest
        self.due = min(now + timeout, self._end)
        """Time at which the start has taken too long."""

    def progressed(self, now: float) -> float:
        """Record progress, and return the new deadline."""
        self.due = min(now + self._timeout, self._end)
        return self.due
