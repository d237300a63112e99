"""Process trees: who is in them, and signals to the very processes that are meant.

A process is named by pid *and* start time (`ProcessId`), so that a number that the system has given to
somebody else is never mistaken for ours.

    >>> me = identify(os.getpid())
    >>> me is not None and alive(me)
    True
    >>> alive(me._replace(start_time=me.start_time - 3600))
    False
"""

from __future__ import annotations

import os
import signal

import psutil

from rayvisor._backends.process import reaper
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["MARKER", "alive", "hold", "identify", "kill", "marked", "start_ticks", "tree"]

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
    return stat is not None and reaper.send(signal.SIGKILL, stat.pid, stat.ticks)


def hold(process: ProcessId) -> bool:
    """SIGSTOP to this very process; whether it stands still, or is gone: then it forks no more."""
    stat = _find(process)
    if stat is None or stat.state in "Tt":
        return True
    reaper.send(signal.SIGSTOP, stat.pid, stat.ticks)
    return False
