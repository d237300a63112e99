"""The identity of a process: its pid, its start in clock ticks since boot, and the id of that boot.

Two records name the same process if and only if all three are equal. No clock is read, so a step of the
wall clock changes nothing, and a process that gets the pid of one that has ended is never mistaken for
it. A zombie counts as gone: it holds nothing but its pid. This module alone decides that for the whole
package; it reads ``/proc`` and therefore needs Linux.

    >>> me = identify(os.getpid())
    >>> me is not None and alive(me)
    True
    >>> alive(me._replace(start_ticks=me.start_ticks - 1))
    False
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from rayvisor._backends.process import reaper
from rayvisor._backends.process.reaper import ProcessStat
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["alive", "boot_id", "find", "identify", "name_of_stat", "own_identity", "same"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@cache
def boot_id() -> str:
    """Return the kernel's id of the present boot; empty where the kernel has none."""
    try:
        return Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def name_of_stat(stat: ProcessStat) -> ProcessId:
    """Return the identity of a process whose record has been read in this boot."""
    return ProcessId(stat.pid, stat.start_ticks, boot_id(), stat.name)


def identify(pid: int, *, zombie: bool = False) -> ProcessId | None:
    """Identify the process that has this pid now.

    Parameters
    ----------
    pid
        The pid.
    zombie
        Whether to identify a zombie too. By default it counts as gone.

    Returns
    -------
    ProcessId or None
        None if there is no such process.
    """
    stat = reaper.read_stat(pid)
    return None if stat is None or (stat.gone and not zombie) else name_of_stat(stat)


def own_identity() -> ProcessId:
    """Identify this process.

    Raises
    ------
    RuntimeError
        There is no ``/proc``: rayvisor supervises processes on Linux only.
    """
    me = identify(os.getpid())
    if me is None:
        raise RuntimeError("/proc does not show this process: rayvisor supervises processes on Linux only")
    return me


def same(one: ProcessId, other: ProcessId) -> bool:
    """Return whether both name the same process. Their names do not count: a process may change its title."""
    return one[:3] == other[:3]


def find(process: ProcessId) -> ProcessStat | None:
    """Return the kernel's record of this very process, also of its zombie; None if it does not exist here."""
    stat = reaper.read_stat(process.pid)
    return stat if stat is not None and same(name_of_stat(stat), process) else None


def alive(process: ProcessId) -> bool:
    """Return whether this very process still runs."""
    stat = find(process)
    return stat is not None and not stat.gone
