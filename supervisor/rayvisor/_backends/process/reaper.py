"""The reaper: ends what a host leaves behind when it dies by SIGKILL.

A host starts it as a program of its own, ``python -I -S reaper.py PID TICKS KEY [PARENT TICKS]``. It needs
nothing but the standard library and this file, so it is up in some ten milliseconds and takes a few
megabytes; what it knows of /proc is used by `rayvisor._backends.process.tree` too.

It lives in a session of its own, as nobody's child (it forks once and lets the first process go): neither
Ctrl-C in the terminal nor Ray's clean-up of a dead worker's group or children ends it. It watches the host
through a pidfd, notes the host's process tree twice a second and what the host tells it over the pipe, and
when the host dies, it kills every process it noted, whatever they have started since, and every process
whose environment carries the host's key. A host that leaves in order says ``bye``. With two more arguments,
the pid and ticks of the host's parent, it ends the host too when that parent dies: a host whose raylet is
gone serves nobody, and holds the memory that its successor needs. Either way the reaper is gone seconds
later.

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

_SCAN_SECONDS = 0.5
_KILL_SECONDS = 8.0
_GONE_STATES = frozenset("ZX")


class Stat(NamedTuple):
    """What the kernel says of a process; ``ticks`` is its start, in clock ticks since boot."""

    pid: int
    ppid: int
    ticks: int
    state: str
    name: str


def read_stat(pid: int) -> Stat | None:
    """Look at one process; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would double the start time
            text = file.read()
    except OSError:
        return None
    # The name is in brackets and may itself hold brackets and blanks: the last bracket ends it.
    opened, closed = text.find(b"("), text.rfind(b")")
    fields = text[closed + 2 :].split()
    if opened < 0 or len(fields) < 20:  # noqa: PLR2004 - the start time is the twentieth field after the name
        return None
    name = text[opened + 1 : closed].decode(errors="replace")
    return Stat(pid, int(fields[1]), int(fields[19]), fields[0].decode(), name)


def is_alive(pid: int, ticks: int) -> bool:
    """Whether this very process still runs. A zombie has ended: it holds nothing but its pid."""
    stat = read_stat(pid)
    return stat is not None and stat.ticks == ticks and stat.state not in _GONE_STATES


def list_pids() -> list[int]:
    """Pids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - no pathlib here


def children_of(pid: int) -> list[int] | None:
    """Pids of a process's children; None if this kernel does not list them."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - no pathlib here
    except OSError:
        return []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - no pathlib here
                found.extend(int(word) for word in file.read().split())
        except FileNotFoundError:
            if thread == str(pid) and os.path.exists(f"/proc/{pid}/task/{thread}"):  # noqa: PTH110
                return None
        except OSError:
            continue
    return found


def tree_below(roots: list[int]) -> dict[int, Stat]:
    """Every live process below these pids, the roots not included."""
    found: dict[int, Stat] = {}
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
    return {pid: stat for pid, stat in found.items() if stat.state not in _GONE_STATES}


def _children_table() -> dict[int, list[int]]:
    table: dict[int, list[int]] = {}
    for pid in list_pids():
        stat = read_stat(pid)
        if stat is not None:
            table.setdefault(stat.ppid, []).append(pid)
    return table


def marked_with(key: str) -> dict[int, Stat]:
    """Every live process whose environment carries this key, wherever it has been reparented to."""
    wanted = f"{MARKER}={key}".encode()
    found: dict[int, Stat] = {}
    for pid in list_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - no pathlib here
                environment = file.read()
        except OSError:
            continue  # another user's, or gone: not ours either way
        if wanted in environment.split(b"\0"):
            stat = read_stat(pid)
            if stat is not None and stat.state not in _GONE_STATES:
                found[pid] = stat
    return found


def send(number: int, pid: int, ticks: int) -> bool:
    """Send a signal to this very process, never to one that got its pid later. Whether it was sent."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The pidfd holds whatever has the pid now: only once it is ours does the start time tell who it is.
        if not is_alive(pid, ticks):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(pidfd)


class _Watch:
    """The reaper's notes on one host."""

    def __init__(self, host: int, ticks: int, key: str, parent: tuple[int, int] | None) -> None:
        self.host = host
        self.ticks = ticks
        self.key = key
        self.parent = parent
        self.noted: dict[int, Stat] = {}
        self.farewell = False

    def goes_on(self) -> bool:
        """Whether there is still something to watch."""
        return is_alive(self.host, self.ticks) and (self.parent is None or is_alive(*self.parent))

    def hear(self, line: str) -> None:
        words = line.split()
        if words == ["bye"]:
            self.farewell = True
        elif len(words) == 3 and words[0] == "process":  # noqa: PLR2004 - the word, a pid, its ticks
            stat = read_stat(int(words[1]))
            if stat is not None and stat.ticks == int(words[2]):
                self.noted[stat.pid] = stat

    def scan(self) -> None:
        """Note the tree; what was noted before stays, since orphans leave the tree."""
        self.noted = {pid: stat for pid, stat in self.noted.items() if is_alive(pid, stat.ticks)}
        roots = [*self.noted]
        if is_alive(self.host, self.ticks):
            roots.append(self.host)
        self.noted.update(tree_below(roots))
        self.noted.pop(os.getpid(), None)

    def kill(self) -> list[Stat]:
        """Kill until two rounds in a row find nothing; bounded."""
        killed: dict[int, Stat] = {}
        until = time.monotonic() + _KILL_SECONDS
        host = read_stat(self.host)
        if host is not None and host.ticks == self.ticks:
            self.noted[host.pid] = host  # it lives: its parent died
        quiet = 0
        while quiet < 2 and time.monotonic() < until:  # noqa: PLR2004 - a child may just be forking
            self.scan()
            self.noted.update(marked_with(self.key))
            self.noted.pop(os.getpid(), None)
            alive = [stat for stat in self.noted.values() if is_alive(stat.pid, stat.ticks)]
            for stat in alive:
                if send(signal.SIGKILL, stat.pid, stat.ticks):
                    killed[stat.pid] = stat
            quiet = 0 if alive else quiet + 1
            time.sleep(0.02)
        return list(killed.values())


def _serve(watch: _Watch) -> None:
    poller = select.poll()
    poller.register(0, select.POLLIN)
    for pid in (watch.host, *([watch.parent[0]] if watch.parent else [])):
        with contextlib.suppress(OSError):
            poller.register(os.pidfd_open(pid), select.POLLIN)
    rest = b""
    while watch.goes_on():
        if 0 in dict(poller.poll(_SCAN_SECONDS * 1000)):
            data = os.read(0, 65536)
            if not data:
                poller.unregister(0)  # closed: the pidfd alone tells from now on
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                watch.hear(line.decode(errors="replace"))
            if watch.farewell:
                return
        watch.scan()
    killed = watch.kill()
    if killed:
        names = ", ".join(f"{stat.name} ({stat.pid})" for stat in killed)
        sys.stderr.write(f"rayvisor reaper: host {watch.host} is gone, killed {names}\n")


def main(arguments: list[str]) -> None:
    """Watch the host named by pid and start ticks until it is gone."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    host, ticks, key = int(arguments[0]), int(arguments[1]), arguments[2]
    parent = (int(arguments[3]), int(arguments[4])) if arguments[3:] else None
    if os.fork():
        os._exit(0)  # nobody's child from here on: whoever sweeps up the host's children does not find it
    with contextlib.suppress(OSError):
        os.write(1, f"{os.getpid()}\n".encode())
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.close(quiet)
    _serve(_Watch(host, ticks, key, parent))


if __name__ == "__main__":
    main(sys.argv[1:])
