r"""The work of a server, and its progress, read from its metrics. Pure.

A server that hangs still reports on ``/health`` that it is healthy. But while it has requests, one of the
counters on its ``/metrics`` has to change.

>>> sample = read_metrics('vllm:num_requests_running{engine="0"} 2.0\nvllm:generation_tokens_total 7.0\n')
>>> sample
Sample(known=True, waiting=2, moved=7.0, tokens=7.0)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rayvisor._backends.host.engine import ExternalLoad

__all__ = ["Sample", "Traffic", "read_metrics"]

_WAITING = frozenset({"vllm:num_requests_running", "vllm:num_requests_waiting"})
_TOKENS = frozenset({"vllm:generation_tokens_total"})
_MOVING = _TOKENS | {
    "vllm:prompt_tokens_total",
    "vllm:request_success_total",
    "vllm:iteration_tokens_total_count",
}


class Sample(NamedTuple):
    """One reading of the metrics."""

    known: bool
    """Whether the page has these metrics; it has none if the server's statistics are disabled."""
    waiting: int
    """Requests that run, or wait to run."""
    moved: float
    """Sum of the counters of progress; each step of the engine changes it."""
    tokens: float
    """Tokens generated since the start of the server."""


def read_metrics(text: str) -> Sample:
    """Read the relevant metrics from a page in Prometheus' text format; it skips infinite values."""
    known, waiting, moved, tokens = False, 0.0, 0.0, 0.0
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        head, _, number = line.rpartition(" ")
        name = head.partition("{")[0]
        if name not in _WAITING and name not in _MOVING:
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        if name in _WAITING:
            waiting += value
        else:
            known = True
            moved += value
            tokens += value if name in _TOKENS else 0.0
    return Sample(known, int(waiting), moved, tokens)


class Traffic:
    """Tracks the work of a server.

    >>> traffic = Traffic()
    >>> traffic.update(Sample(True, 1, 5.0, 5.0), load=1, now=10.0)
    >>> traffic.update(Sample(True, 1, 5.0, 5.0), load=1, now=12.0)
    >>> traffic.external_load()[:3]
    (1, 10.0, 10.0)
    >>> traffic.mark_silent(now=13.0)
    >>> traffic.external_load().waiting
    2
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._since = -math.inf
        self._moved = -1.0
        self._progressed = -math.inf
        self._silent_since: float | None = None
        self.tokens = 0.0
        """Tokens generated, as of the last reading."""

    def update(self, sample: Sample, *, load: int, now: float) -> None:
        """Record a reading of the metrics.

        Parameters
        ----------
        sample
            The reading.
        load
            Number of requests in the server's HTTP front. Its metrics do not count a request that the engine
            has not begun with.
        now
            Time of the reading on the monotonic clock, in seconds.
        """
        waiting = max(sample.waiting, load) if sample.known else 0
        if waiting and not self._waiting:
            self._since = now
        if sample.moved != self._moved or waiting < self._waiting:
            self._progressed = now
        self._waiting, self._moved, self.tokens = waiting, sample.moved, sample.tokens

    def mark_answered(self) -> None:
        """Record that it has answered a health check."""
        self._silent_since = None

    def mark_silent(self, now: float) -> None:
        """Record that it has not answered a health check that was sent at ``now``."""
        if self._silent_since is None:
            self._silent_since = now

    @property
    def is_silent(self) -> bool:
        """Whether the last health check is unanswered."""
        return self._silent_since is not None

    def external_load(self) -> ExternalLoad:
        """Return the present load. An unanswered health check counts as one more request that waits."""
        if self._silent_since is None:
            return ExternalLoad(self._waiting, self._since, self._progressed)
        since = min(self._since, self._silent_since) if self._waiting else self._silent_since
        return ExternalLoad(self._waiting + 1, since, self._progressed)
