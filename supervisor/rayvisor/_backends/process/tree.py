"""Process trees: which processes belong to one, and signals to exactly these processes."""

from __future__ import annotations

import signal

from rayvisor._backends.process import reaper
from rayvisor._backends.process.identity import alive, find, name_of_stat
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["MARKER", "kill", "marked", "suspend", "tree"]

MARKER = reaper.MARKER


def tree(*roots: ProcessId) -> tuple[ProcessId, ...]:
    """Return every live process below these, without the roots."""
    pids = [root.pid for root in roots if alive(root)]
    return tuple(name_of_stat(stat) for stat in reaper.tree_below(pids).values())


def marked(key: str) -> tuple[ProcessId, ...]:
    """Return every live process that carries a host's key in its environment, reparented ones included."""
    return tuple(name_of_stat(stat) for stat in reaper.marked_with(key).values())


def kill(process: ProcessId) -> bool:
    """Send SIGKILL to this very process, which also ends a stopped one; return whether it was sent."""
    return alive(process) and reaper.send(signal.SIGKILL, process.pid, process.start_ticks)


def suspend(process: ProcessId) -> bool:
    """Send SIGSTOP to this very process.

    Returns
    -------
    bool
        Whether it is stopped already, or gone: in both cases it forks no more.
    """
    stat = find(process)
    if stat is None or stat.gone or stat.state in "Tt":
        return True
    reaper.send(signal.SIGSTOP, process.pid, process.start_ticks)
    return False
