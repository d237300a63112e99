"""Process trees: who is in them, ending them, and the proof that they are gone.

A process is named by pid *and* start time (`ProcessId`), so that a number that the system has given to
somebody else is never mistaken for ours.

    >>> me = identify(os.getpid())
    >>> me is not None and alive(me)
    True
    >>> alive(me._replace(start_time=me.start_time - 3600))
    False
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import anyio
import anyio.to_thread
import psutil

from rayvisor._engine.link import GoneReport
from rayvisor._engine.wire import ProcessId
from rayvisor._process import reaper

__all__ = ["MARKER", "alive", "end_processes", "hold", "identify", "kill", "marked", "start_ticks", "tree"]

MARKER = reaper.MARKER
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

# The kernel derives the boot time from the wall clock and rounds it to a second: two readers of one process
# may be a second apart when the clock is being adjusted. No system gives a pid away again so soon.
_TOLERANCE = 1.5


def _process_id(stat: reaper.Stat) -> ProcessId:
    return ProcessId(stat.pid, psutil.boot_time() + stat.ticks / _TICKS_A_SECOND, stat.name)


def _find(process: ProcessId) -> reaper.Stat | None:
    """The kernel's record of this very process, if it still runs."""
    stat = reaper.read_stat(process.pid)
    if stat is None or stat.state in "ZX":
        return None
    same = abs(_process_id(stat).start_time - process.start_time) <= _TOLERANCE
    return stat if same else None


def identify(pid: int) -> ProcessId | None:
    """Name the process that has this pid now; None if there is none, or only its zombie."""
    stat = reaper.read_stat(pid)
    return None if stat is None or stat.state in "ZX" else _process_id(stat)


def start_ticks(process: ProcessId) -> int | None:
    """The process's start in clock ticks since boot, as the reaper counts; None if it is gone."""
    stat = _find(process)
    return None if stat is None else stat.ticks


def alive(process: ProcessId) -> bool:
    """Whether this very process still runs. A zombie does not."""
    return _find(process) is not None


def tree(*roots: ProcessId) -> tuple[ProcessId, ...]:
    """Every live process below these, they themselves not included."""
    pids = [root.pid for root in roots if alive(root)]
    return tuple(_process_id(stat) for stat in reaper.tree_below(pids).values())


def marked(key: str) -> tuple[ProcessId, ...]:
    """Every live process that carries a host's key in its environment, also when it has been reparented."""
    return tuple(_process_id(stat) for stat in reaper.marked_with(key).values())


def kill(process: ProcessId) -> bool:
    """SIGKILL this very process; it works on a stopped one too. Whether a signal was sent."""
    stat = _find(process)
    return stat is not None and reaper.kill_process(stat.pid, stat.ticks)


def hold(process: ProcessId) -> bool:
    """SIGSTOP to this very process; whether it stands still, or is gone: then it forks no more."""
    stat = _find(process)
    if stat is None or stat.state in "Tt":
        return True
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(stat.pid, signal.SIGSTOP)
    return False


def _round(known: dict[int, ProcessId], key: str | None) -> tuple[list[ProcessId], list[ProcessId]]:
    """Find once more, kill once more: (killed, alive before the kill)."""
    for found in tree(*known.values()):
        known.setdefault(found.pid, found)
    for found in marked(key) if key else ():
        known.setdefault(found.pid, found)
    known.pop(os.getpid(), None)
    living = [process for process in known.values() if alive(process)]
    return [process for process in living if kill(process)], living


async def end_processes(
    processes: Iterable[ProcessId],
    *,
    key: str | None,
    deadline: float,
    killed: dict[int, ProcessId] | None = None,
) -> GoneReport:
    """Kill these processes and everything below them, and wait for the proof that all are gone.

    Parameters
    ----------
    processes
        What is known of the tree; roots are enough while they live.
    key
        The host's key: processes that carry it are found even when nothing of their ancestry is left.
    deadline
        Seconds to wait for the proof.
    killed
        Where to note what was killed, as it happens; the report names everything that is in it at the end.
    """
    until = time.monotonic() + deadline
    known = {process.pid: process for process in processes}
    killed = {} if killed is None else killed
    pause = 0.005
    quiet = 0
    while True:
        hit, living = await anyio.to_thread.run_sync(_round, known, key)
        killed.update((process.pid, process) for process in hit)
        quiet = 0 if living else quiet + 1
        if quiet == 2:  # noqa: PLR2004 - two rounds: a child may just have been forking in the first
            return GoneReport(tuple(killed.values()), (), verified=True)
        if time.monotonic() >= until:
            left = tuple(process for process in living if alive(process))
            return GoneReport(tuple(killed.values()), left, verified=False)
        await anyio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
