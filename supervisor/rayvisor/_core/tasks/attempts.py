"""Attempts: whether another one follows a failure, and after which delay. Pure.

>>> backoff = Backoff(initial=6.0, maximum=8.0, jitter="none", first_delay_zero=False)
>>> limits = Limits(max_attempts=3, backoff=backoff)
>>> attempts = Attempts(limits, Random(1), now=0.0)
>>> attempts.failed("ActorUnavailableError", now=1.0), attempts.failed("ActorUnavailableError", now=9.0)
(6.0, 8.0)
>>> attempts.failed("ActorUnavailableError", now=18.0) is None
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from rayvisor._validation import seconds, whole
from rayvisor.errors import SpecError
from rayvisor.specs import Backoff
from rayvisor.specs.backoff import delay

__all__ = ["Attempts", "Limits"]

N = TypeVar("N", int, float)

_MOST_NOTED = 10
_LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the attempts of one call; the first limit that is reached counts.

    Parameters
    ----------
    max_attempts
        How many attempts in all, the first one included; None: no such limit.
    timeout
        Seconds after the beginning in which an attempt may still begin; None: no such limit.
    backoff
        The delays between them. Its ``max_retries`` and ``timeout`` apply as well.

    Raises
    ------
    SpecError
        A value cannot work, or nothing limits the attempts.
    """

    backoff: Backoff
    max_attempts: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            whole("max_attempts", self.max_attempts, "attempts in all")
        if self.timeout is not None:
            seconds("timeout", self.timeout, below=math.inf)
        backoff: object = self.backoff
        if not isinstance(backoff, Backoff):
            raise SpecError("backoff", backoff, "must be a Backoff")
        if self.most is None and self.longest is None:
            raise SpecError(
                "max_attempts",
                self.max_attempts,
                "would never end; give max_attempts or a timeout",
            )

    @property
    def most(self) -> int | None:
        """How many attempts in all; None: no limit."""
        retries = self.backoff.max_retries
        return _least(self.max_attempts, None if retries is None else retries + 1)

    @property
    def longest(self) -> float | None:
        """Seconds after the beginning in which an attempt may begin; None: no limit."""
        return _least(self.timeout, self.backoff.timeout)


def _least(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


class Attempts:
    """The attempts of one call so far.

    Parameters
    ----------
    limits
        Limits of the attempts.
    random
        Source of the jitter.
    now
        Time at which the first one begins.
    """

    def __init__(self, limits: Limits, random: Random, now: float) -> None:
        self._limits = limits
        self._random = random
        self._began = now
        self._now = now
        self._delays: list[float] = []
        self._errors: list[str] = []

    @property
    def failures(self) -> int:
        """How many attempts have failed."""
        return len(self._errors)

    def failed(self, error: str, now: float) -> float | None:
        """Record a failed attempt.

        Returns
        -------
        float | None
            Seconds to wait before the next one; None: no further one is allowed.
        """
        self._errors.append(error)
        self._now = now
        most, longest = self._limits.most, self._limits.longest
        if most is not None and self.failures >= most:
            return None
        previous = self._delays[-1] if self._delays else 0.0
        wait = delay(self._limits.backoff, len(self._delays), previous, self._random)
        if longest is not None and now + wait - self._began > longest:
            return None
        self._delays.append(wait)
        return wait

    def note(self, caller: str = "rayvisor.retry") -> str:
        """Return a summary of the attempts, as a note for the last error."""
        count = self.failures
        lines = [
            f"{caller}: {count} {'attempt' if count == 1 else 'attempts'} in "
            f"{self._now - self._began:.3g} s"
            + (f", delays {', '.join(f'{wait:.3g}' for wait in self._delays)} s" if self._delays else "")
        ]
        skipped = max(0, count - _MOST_NOTED)
        if skipped:
            lines.append(f"  ({skipped} more before)")
        for number, error in list(enumerate(self._errors, 1))[skipped:]:
            first = error.strip().partition("\n")[0]
            lines.append(f"  {number}. {first[:_LONGEST_ERROR]}")
        return "\n".join(lines)
