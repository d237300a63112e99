"""Observation of processes from outside: whether they are stopped, and how much processor time they take.

The load of a process is the processor time it has taken plus the time its threads waited for a core, because
an engine that computes gets little of an overloaded machine. All threads count: those that compute are seldom
the first one, which then sleeps until they are done.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio

from rayvisor._backends.process.identity import find
from rayvisor._core.protocol.wire import ProcessId, ProcessObservation
from rayvisor.faults import Cause
from rayvisor.timeouts import DEFAULT_TIMEOUTS

__all__ = ["Sampler", "describe", "observe", "stopped_cause"]

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_STATE_TEXTS = {"D": "waits for a device", "Z": "has ended", "X": "has ended", "": "has ended"}


class Sampler:
    """Samples processes repeatedly, and computes their load from one sample to the next."""

    def __init__(self) -> None:
        self._samples: dict[tuple[int, int, str], tuple[float, float]] = {}

    def sample(self, processes: Iterable[ProcessId], now: float) -> list[ProcessObservation]:
        """Observe these processes. The load of a process is 0 in its first sample."""
        observations = []
        samples: dict[tuple[int, int, str], tuple[float, float]] = {}
        for process in processes:
            state, demand = _read(process)
            at, before = self._samples.get(process[:3], (now, demand))
            samples[process[:3]] = now, demand
            load = (demand - before) / (now - at) if now > at else 0.0
            # The waiting time of a thread is lost when the thread ends, so that the sum may shrink.
            observations.append(ProcessObservation(process, state, max(0.0, load)))
        self._samples = samples
        return observations


async def observe(
    processes: Sequence[ProcessId], *, load: float = DEFAULT_TIMEOUTS.process.load
) -> list[ProcessObservation]:
    """Observe processes that have no earlier sample.

    Parameters
    ----------
    processes
        The processes.
    load
        Seconds between the two samples that a load is computed from.
    """
    sampler = Sampler()
    sampler.sample(processes, time.monotonic())
    await anyio.sleep(load)
    return sampler.sample(processes, time.monotonic())


def stopped_cause(observations: Iterable[ProcessObservation]) -> Cause | None:
    """Return a cause that names the stopped processes; None if none is stopped."""
    stopped = [each for each in observations if each.stopped]
    if not stopped:
        return None
    signal = "by a debugger" if all(each.state == "t" for each in stopped) else "(SIGSTOP)"
    verb = "is" if len(stopped) == 1 else "are"
    who = " and ".join(each.who for each in stopped)
    return Cause("ProcessStopped", f"{who} {verb} stopped {signal}")


def describe(observations: Sequence[ProcessObservation], busy: float) -> str:
    """Describe what each process does; a load of ``busy`` or more is given as a share of a core."""
    return ", ".join(f"{each.who} {_activity(each, busy)}" for each in observations)


def _activity(observation: ProcessObservation, busy: float) -> str:
    if observation.stopped:
        return "is stopped"
    if observation.load >= busy:
        return f"takes {min(observation.load, 99.0):.0%} of a core"
    if observation.state == "R" and observation.load >= busy / 4:
        return "computes"  # the state alone is not enough: kernels of sandboxes show it for any process
    return _STATE_TEXTS.get(observation.state, "sleeps")


def _read(process: ProcessId) -> tuple[str, float]:
    """Return the state of this very process, and the processor seconds that it has taken or waited for."""
    stat = find(process)
    if stat is None:
        return "", 0.0
    return stat.state, stat.cpu_ticks / _TICKS_PER_SECOND + _seconds_waited(process.pid)


def _seconds_waited(pid: int) -> float:
    """Return how long the process's threads have waited for a core, without those that have ended."""
    waited = 0
    with contextlib.suppress(OSError):  # the process has ended, or the kernel keeps no account
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited += int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    return waited / 1e9
