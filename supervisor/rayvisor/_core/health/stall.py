"""Whether something that should get on does: decided from looks at it. Pure.

A hung engine looks alive: its processes are there, its flags say that all is well. What it does not do is
to bring tokens while requests wait for them. Who watches takes a look every ``probe_interval`` seconds, and
[`StallWatch`][rayvisor._core.health.stall.StallWatch] says what follows:

- A look is a **miss** when somebody waits, nothing has come for a whole interval, and the processes do
  nothing. ``k`` misses among the last ``n`` looks: SUSPECT. One sign of life: all is well again.
- Nothing for ``stall_after`` seconds, and no sign of computing in the latter half of them: STALLED. The first
  half does not count: an engine whose partner hangs spins for a second before it goes to sleep.
- Processes that **compute** are given longer, up to ``step_limit``: a long prefill is no hang. A process
  that is stopped (SIGSTOP) earns nothing by what its partners, which wait for it, burn.
- **Idle and suspicious**: nobody waits, but a process is stopped, or those who waited have gone away
  unserved. Then a probe is asked for: a request for one token. It waits like any other, and is judged so.
- Time in which nobody looked (the watcher itself was held up) is not held against anybody.

The same watch judges a host by its heartbeats: there somebody always waits.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import NamedTuple

from rayvisor.specs import StallLimits

__all__ = ["BUSY_SHARE", "HealthAction", "Look", "StallWatch", "StartClock"]

BUSY_SHARE = 0.5
"""From this share of a core on a process computes. One that polls for work takes about a tenth."""

_IDLE_SHARE = 0.5
"""For so much of ``stall_after`` it must have done nothing, up to its end."""


class Look(NamedTuple):
    """What is seen at one moment."""

    now: float
    progressed: float
    """When something came last; before the watch began if never."""
    waiting: int
    """How many wait for something to come; a probe counts."""
    waiting_since: float = -math.inf
    """Since when somebody has waited all the time."""
    load: float = 0.0
    """Share of a core that the busiest process took, or wanted, since the last look."""
    stopped: bool = False
    """Whether one of the processes is stopped."""
    resting: bool = False
    """It was asked to do nothing: nothing is expected of it."""


class HealthAction(StrEnum):
    """What a look leads to."""

    NOTHING = "nothing"
    PROBE = "probe"
    """Ask for one token: it is idle, and not to be trusted."""
    SUSPECT = "suspect"
    CLEAR = "clear"
    """It was suspect and is not any more."""
    STALLED = "stalled"
    """For good."""


class StallWatch:
    """Judges something by looks at it.

    Parameters
    ----------
    limits
        How patient to be.
    now
        When the watch begins.

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
        """For how many seconds nothing had come at the last look, while somebody waited."""
        return self._at - self._quiet_since

    def look(self, look: Look) -> HealthAction:
        """Take one look, and say what follows from it."""
        if self.stalled:
            return HealthAction.NOTHING
        self._pass_over_a_lapse(look.now)
        if look.resting or look.progressed > self._progressed:
            self._progressed = look.progressed
            return self._fine(look)
        if not look.waiting:
            if self.suspect or look.stopped or any(self._looks):
                return HealthAction.PROBE
            return self._fine(look)
        if not any(self._looks):
            # Only the time in which somebody waited counts.
            self._quiet_since = max(self._quiet_since, look.waiting_since)
        return self._judge(look)

    def next_look(self, now: float) -> float:
        """When to look again: after the interval, or sooner if a limit is reached before."""
        limits = self._limits
        ends = (
            max(self._quiet_since + limits.stall_after, self._still_since + _IDLE_SHARE * limits.stall_after),
            self._quiet_since + limits.step_limit,
        )
        return min([now + limits.probe_interval, *(end for end in ends if end > now)])

    def _pass_over_a_lapse(self, now: float) -> None:
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
    """Until when a start may go on: its deadline counts from its last progress, the whole is bounded.

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
        """When it has taken too long."""

    def progressed(self, now: float) -> float:
        """It has got on; gives the new end of patience."""
        self.due = min(now + self._timeout, self._end)
        return self.due
