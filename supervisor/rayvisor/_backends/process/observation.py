"""What can be seen of a process from outside: whether it is stopped, and whether it computes.

Computing is the processor time that a process has taken, and the time that its threads waited for a core:
on a machine that is overloaded an engine that computes gets little. All threads count, for those that
compute are seldom the first one, which then sleeps until they are done.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio

from rayvisor._core.protocol.wire import ProcessId, ProcessObservation
from rayvisor.faults import Cause

__all__ = ["Sampler", "in_words", "look_twice", "stopped_cause"]

_TICKS = os.sysconf("SC_CLK_TCK")
_LOAD_SECONDS = 0.2
"""Over so long it is measured what a process takes of a core."""
_STATE, _UTIME, _STIME = 0, 11, 12  # places in /proc/PID/stat, counted from the state on

_WORDS = {"D": "waits for a device", "Z": "has ended", "X": "has ended", "": "has ended"}


class Sampler:
    """Looks at processes, again and again."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}

    def look(self, processes: Iterable[ProcessId], now: float) -> list[ProcessObservation]:
        """Look at these. At first sight a process has no load."""
        sights = []
        seen: dict[int, tuple[float, float]] = {}
        for process in processes:
            state, wanted = _read(process.pid)
            at, before = self._seen.get(process.pid, (now, wanted))
            seen[process.pid] = now, wanted
            load = (wanted - before) / (now - at) if now > at else 0.0
            # A thread that has ended takes what it waited with it.
            sights.append(ProcessObservation(process, state, max(0.0, load)))
        self._seen = seen
        return sights


async def look_twice(processes: Sequence[ProcessId]) -> list[ProcessObservation]:
    """Look at processes that were not looked at before, for as long as it takes to see their load: 0.2 s."""
    sampler = Sampler()
    sampler.look(processes, time.monotonic())
    await anyio.sleep(_LOAD_SECONDS)
    return sampler.look(processes, time.monotonic())


def stopped_cause(sights: Iterable[ProcessObservation]) -> Cause | None:
    """Say that processes are stopped, as a cause; None if none is."""
    stopped = [sight for sight in sights if sight.stopped]
    if not stopped:
        return None
    signal = "by a debugger" if all(sight.state == "t" for sight in stopped) else "(SIGSTOP)"
    verb = "is" if len(stopped) == 1 else "are"
    who = " and ".join(sight.who for sight in stopped)
    return Cause("ProcessStopped", f"{who} {verb} stopped {signal}")


def in_words(sights: Sequence[ProcessObservation], busy: float) -> str:
    """Say what each of them does."""
    return ", ".join(f"{sight.who} {_does(sight, busy)}" for sight in sights)


def _does(sight: ProcessObservation, busy: float) -> str:
    if sight.stopped:
        return "is stopped"
    if sight.load >= busy:
        return f"takes {min(sight.load, 99.0):.0%} of a core"
    if sight.state == "R" and sight.load >= busy / 4:
        return "computes"  # the state alone does not say so: kernels of sandboxes show it of any process
    return _WORDS.get(sight.state, "sleeps")


def _read(pid: int) -> tuple[str, float]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        state, used = fields[_STATE], (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS
    except (OSError, ValueError, IndexError):
        return "", 0.0
    return state, used + _waited(pid)


def _waited(pid: int) -> float:
    """Seconds for which the process's threads have waited for a core, those that have ended left out."""
    waited = 0
    with contextlib.suppress(OSError):  # it has gone, or the kernel keeps no account
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names only
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited += int(
                    Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii").split()[1]
                )
    return waited / 1e9
