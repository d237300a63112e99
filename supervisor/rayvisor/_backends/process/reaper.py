"""The reaper: kills the processes that a host leaves behind when it dies by SIGKILL.

A host starts it as a separate program, ``python -I -S reaper.py PID TICKS KEY SCAN KILL [PARENT TICKS]``. It
imports the standard library only, so it is ready after about ten milliseconds and takes a few megabytes. The
rest of the package uses its parser of ``/proc`` through `rayvisor._backends.process.identity`: there is no
other one.

It runs in its own session and forks once, so that it is a child of no process of the host: neither Ctrl-C in
the terminal nor Ray's clean-up of a dead worker's group or children ends it. It watches the host through a
pidfd, and records the host's process tree every SCAN seconds, together with the processes that the host names
over a pipe. When the host dies, it kills every recorded process, every process that those have started
since, and every process whose environment carries the host's key, for at most KILL seconds. A host that
leaves in order writes ``bye``. With two more arguments, the pid and start ticks of the host's parent, it also
kills the host when that parent dies: a host without a raylet serves no requests, and holds the memory that
its successor needs. In each case the reaper exits within seconds.

The pipe carries lines: ``process PID TICKS`` and ``bye``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import NamedTuple

MARKER = "RAYVISOR_HOST"
"""Name of the environment variable that a host's processes carry; its value is the host's key."""

_QUIET_ROUNDS = 2
"""A child may just have been forking in the first round that finds nothing."""
_GONE_STATES = frozenset("ZX")

# Positions in /proc/PID/stat, counted from the state, which follows the name.
_STATE, _PPID, _FLAGS, _UTIME, _STIME, _START, _EXIT_STATUS = 0, 1, 6, 11, 12, 19, 49


class ProcessStat(NamedTuple):
    """The kernel's record of a process, from ``/proc/PID/stat``."""

    pid: int
    ppid: int
    start_ticks: int
    """Its start, in clock ticks since boot. Steps of the wall clock do not change it."""
    state: str
    """``R`` runs, ``S`` sleeps, ``T`` is stopped, ``t`` is stopped by a debugger, ``Z`` is a zombie."""
    name: str
    """Name of its first thread, at most 15 bytes."""
    flags: int
    """The kernel's ``PF_*`` flags."""
    cpu_ticks: int
    """Processor time taken by all its threads, in clock ticks."""
    exit_status: int | None
    """Wait status; None on kernels that do not show it."""

    @property
    def gone(self) -> bool:
        """Whether it has ended: a zombie holds nothing but its pid."""
        return self.state in _GONE_STATES


def read_stat(pid: int) -> ProcessStat | None:
    """Read the kernel's record of the process that has this pid now; None if there is none."""
    try:
        return parse_stat(pid, _read(f"/proc/{pid}/stat"))
    except OSError:
        return None


def parse_stat(pid: int, text: bytes) -> ProcessStat | None:
    """Parse the content of ``/proc/PID/stat``; None if it is not complete."""
    # The name is in parentheses and may itself contain parentheses and spaces: the last parenthesis ends it.
    opened, closed = text.find(b"("), text.rfind(b")")
    fields = text[closed + 2 :].split()
    if opened < 0 or len(fields) <= _START:
        return None
    return ProcessStat(
        pid,
        int(fields[_PPID]),
        int(fields[_START]),
        fields[_STATE].decode(),
        text[opened + 1 : closed].decode(errors="replace"),
        int(fields[_FLAGS]),
        int(fields[_UTIME]) + int(fields[_STIME]),
        int(fields[_EXIT_STATUS]) if len(fields) > _EXIT_STATUS else None,
    )


def is_alive(pid: int, start_ticks: int) -> bool:
    """Return whether the process that started then still runs. A zombie does not."""
    stat = read_stat(pid)
    return stat is not None and stat.start_ticks == start_ticks and not stat.gone


def list_pids() -> list[int]:
    """Return the pids of all processes."""
    return [int(name) for name in _list("/proc") if name.isdigit()]


def children_of(pid: int) -> list[int] | None:
    """Return the pids of a process's children; None if this kernel does not list them."""
    found: list[int] = []
    try:
        threads = _list(f"/proc/{pid}/task")
    except OSError:
        return []
    for thread in threads:
        try:
            found.extend(int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split())
        except FileNotFoundError:
            if thread == str(pid) and thread in _list_or_nothing(f"/proc/{pid}/task"):
                return None
        except OSError:
            continue
    return found


def tree_below(roots: list[int]) -> dict[int, ProcessStat]:
    """Return every live process below these pids, without the roots."""
    found: dict[int, ProcessStat] = {}
    table: dict[int, list[int]] | None = None
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        children = children_of(pid) if table is None else table.get(pid, [])
        if children is None:
            table = _children_table()
            children = table.get(pid, [])
        for child in children:
            stat = read_stat(child)
            if child not in found and stat is not None:
                found[child] = stat
                waiting.append(child)
    for root in roots:
        found.pop(root, None)
    return {pid: stat for pid, stat in found.items() if not stat.gone}


def _children_table() -> dict[int, list[int]]:
    table: dict[int, list[int]] = {}
    for pid in list_pids():
        stat = read_stat(pid)
        if stat is not None:
            table.setdefault(stat.ppid, []).append(pid)
    return table


def marked_with(key: str) -> dict[int, ProcessStat]:
    """Return every live process whose environment carries this key, wherever it has been reparented to."""
    entry = f"{MARKER}={key}".encode()
    found: dict[int, ProcessStat] = {}
    for pid in list_pids():
        try:
            environment = _read(f"/proc/{pid}/environ")
        except OSError:
            continue  # it belongs to another user or has ended: in both cases it is not one of ours
        if entry in environment.split(b"\0"):
            stat = read_stat(pid)
            if stat is not None and not stat.gone:
                found[pid] = stat
    return found


def send(number: int, pid: int, start_ticks: int) -> bool:
    """Send a signal to the process that started then, never to one that got its pid later.

    Returns
    -------
    bool
        Whether the signal was sent.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The pidfd holds the process that has the pid now. Its start is compared after that, not before.
        if not is_alive(pid, start_ticks):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(pidfd)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - importing pathlib would double the start time
        return file.read()


def _list(path: str) -> list[str]:
    return os.listdir(path)  # noqa: PTH208 - importing pathlib would double the start time


def _list_or_nothing(path: str) -> list[str]:
    try:
        return _list(path)
    except OSError:
        return []


class _HostWatch:
    """The reaper's record of one host."""

    def __init__(
        self,
        host: int,
        start_ticks: int,
        key: str,
        scan_interval: float,
        kill_timeout: float,
        parent: tuple[int, int] | None,
    ) -> None:
        self.host = host
        self.start_ticks = start_ticks
        self.key = key
        self.scan_interval = scan_interval
        self.kill_timeout = kill_timeout
        self.parent = parent
        self.recorded: dict[int, ProcessStat] = {}
        self.dismissed = False

    def should_continue(self) -> bool:
        """Return whether the host and, if it is watched, its parent still run."""
        return is_alive(self.host, self.start_ticks) and (self.parent is None or is_alive(*self.parent))

    def handle_line(self, line: str) -> None:
        """Carry out one line from the pipe."""
        match line.split():
            case ["bye"]:
                self.dismissed = True
            case ["process", pid, start_ticks]:
                stat = read_stat(int(pid))
                if stat is not None and stat.start_ticks == int(start_ticks):
                    self.recorded[stat.pid] = stat

    def scan(self) -> None:
        """Record the tree. Processes that were recorded before are kept, since orphans leave the tree."""
        self.recorded = {pid: stat for pid, stat in self.recorded.items() if is_alive(pid, stat.start_ticks)}
        roots = [*self.recorded]
        if is_alive(self.host, self.start_ticks):
            roots.append(self.host)
        self.recorded.update(tree_below(roots))
        self.recorded.pop(os.getpid(), None)

    def kill(self) -> list[ProcessStat]:
        """Kill until two rounds in a row find nothing, or the timeout has passed."""
        killed: dict[int, ProcessStat] = {}
        until = time.monotonic() + self.kill_timeout
        host = read_stat(self.host)
        if host is not None and host.start_ticks == self.start_ticks:
            self.recorded[host.pid] = host  # it lives: its parent died
        quiet = 0
        while quiet < _QUIET_ROUNDS and time.monotonic() < until:
            self.scan()
            self.recorded.update(marked_with(self.key))
            self.recorded.pop(os.getpid(), None)
            alive = [stat for stat in self.recorded.values() if is_alive(stat.pid, stat.start_ticks)]
            for stat in alive:
                if send(signal.SIGKILL, stat.pid, stat.start_ticks):
                    killed[stat.pid] = stat
            quiet = 0 if alive else quiet + 1
            time.sleep(0.02)
        return list(killed.values())


def _serve(watch: _HostWatch) -> None:
    poller = select.poll()
    poller.register(0, select.POLLIN)
    for pid in (watch.host, *([watch.parent[0]] if watch.parent else [])):
        with contextlib.suppress(OSError):
            poller.register(os.pidfd_open(pid), select.POLLIN)
    rest = b""
    while watch.should_continue():
        if 0 in dict(poller.poll(watch.scan_interval * 1000)):
            data = os.read(0, 65536)
            if not data:
                poller.unregister(0)  # closed: from now on only the pidfd reports the host's death
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                watch.handle_line(line.decode(errors="replace"))
            if watch.dismissed:
                return
        watch.scan()
    killed = watch.kill()
    if killed:
        names = ", ".join(f"{stat.name} ({stat.pid})" for stat in killed)
        sys.stderr.write(f"rayvisor reaper: host {watch.host} is gone, killed {names}\n")


def main(arguments: list[str]) -> None:
    """Watch the host given by pid and start ticks until it is gone."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    host, start_ticks, key = int(arguments[0]), int(arguments[1]), arguments[2]
    scan_interval, kill_timeout = float(arguments[3]), float(arguments[4])
    parent = (int(arguments[5]), int(arguments[6])) if arguments[5:] else None
    if os.fork():
        os._exit(0)  # init becomes the reaper's parent: a clean-up of the host's children does not find it
    with contextlib.suppress(OSError):
        os.write(1, f"{os.getpid()}\n".encode())
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.close(quiet)
    _serve(_HostWatch(host, start_ticks, key, scan_interval, kill_timeout, parent))


if __name__ == "__main__":
    main(sys.argv[1:])
