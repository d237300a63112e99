"""Health of an actor, from the probes that it answered or missed. Pure."""

from __future__ import annotations

from collections import deque

from rayvisor._core.health.stall import HealthAction
from rayvisor.specs import StallLimits

__all__ = ["ProbeWatch"]


class ProbeWatch:
    """Decides on the health of an actor from its probes.

    Parameters
    ----------
    limits
        ``failure_threshold`` is k of n, ``stall_after`` bounds the time without an answer.
    timeout
        Seconds after which a probe is missed.
    now
        Time at which the watch begins; the actor counts as healthy then.

    >>> limits = StallLimits(stall_after=9.0, probe_interval=2.0, failure_threshold=(2, 3))
    >>> watch = ProbeWatch(limits, 1.0, now=0.0)
    >>> [watch.probed(now, answered=now == 4.0).value for now in (2.0, 4.0, 6.0, 8.0, 10.0, 13.5)]
    ['nothing', 'nothing', 'suspect', 'nothing', 'nothing', 'stalled']
    """

    def __init__(self, limits: StallLimits, timeout: float, now: float) -> None:
        self._limits = limits
        self._longest = 2 * (limits.probe_interval + timeout)
        self._at = now
        self._answered = now
        self._misses: deque[bool] = deque(maxlen=limits.failure_threshold[1])
        self.suspect = False

    @property
    def silent(self) -> float:
        """For how many seconds it had not answered at the last probe."""
        return self._at - self._answered

    def probed(self, now: float, *, answered: bool) -> HealthAction:
        """Record a probe, and return the action that follows."""
        gap, self._at = now - self._at, now
        if gap > self._longest and not answered:
            self._answered += gap  # it was not probed meanwhile: that time does not count
            return HealthAction.NOTHING
        self._misses.append(not answered)
        if answered:
            self._answered = now
        if self.silent >= self._limits.stall_after:
            return HealthAction.STALLED
        missed = sum(self._misses) >= self._limits.failure_threshold[0]
        if missed and not self.suspect:
            self.suspect = True
            return HealthAction.SUSPECT
        if self.suspect and answered and not missed:
            self.suspect = False
            return HealthAction.CLEAR
        return HealthAction.NOTHING
