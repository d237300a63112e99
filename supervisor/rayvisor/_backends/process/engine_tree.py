"""The processes of one engine: finding, watching and killing them, and proving that they are gone.

Processes are known by their identity and held by a pidfd, so that nothing here ever touches a process that
got the pid of another one. A process belongs to the engine in two cases. It descends from the host, was not
there before, and carries no other engine's tag in its environment. Or it carries the engine's own tag: this
finds processes whose parent died first, which the process table shows as children of another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import psutil

from rayvisor._backends.process import reaper
from rayvisor._backends.process.identity import alive, identify, same
from rayvisor._backends.process.pidfd import PidfdHandle
from rayvisor._backends.process.threads import run_in_thread
from rayvisor._core.protocol.wire import ProcessId
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ProcessTimeouts

__all__ = ["TAG", "TAG_LENGTH", "Ended", "ProcessTree", "new_tag", "process_id"]

TAG = "RAYVISOR_ENGINE"
"""Name of the environment variable that an engine's processes carry; its value is the engine's tag."""
TAG_LENGTH = 32
"""Length of every tag in characters: one can be written over another in place."""

_SPAWNED = "starting::process"


class Ended(NamedTuple):
    """A process that has ended, and how, as far as the kernel shows it."""

    process: ProcessId
    exit_code: int | None
    signal: int | None


class ProcessTree:
    """The processes of one engine.

    Parameters
    ----------
    tag
        Value of the environment variable `TAG` that its processes are started with.
    timeouts
        Intervals between two looks at its processes.
    """

    def __init__(self, tag: str, *, timeouts: ProcessTimeouts = DEFAULT_TIMEOUTS.process) -> None:
        self.tag = tag
        self._timeouts = timeouts
        self._top: int | None = None
        self._top_name = ""
        self._held: dict[int, PidfdHandle] = {}
        self._watched: set[int] = set()
        self._before = frozenset(_descendants(os.getpid()))
        self._deaths: list[Ended] = []
        self._died = asyncio.Event()
        self._poll: asyncio.Task[None] | None = None
        self._unwatched = False

    @property
    def processes(self) -> tuple[ProcessId, ...]:
        """All recorded processes: essential ones, alive or not, and helpers that are alive."""
        return tuple(held.process for held in self._held.values())

    @property
    def deaths(self) -> tuple[Ended, ...]:
        """Watched processes that have ended, in the order of their deaths."""
        return tuple(self._deaths)

    def how_it_ended(self, pid: int) -> tuple[int | None, int | None]:
        """Return the exit code and signal of a recorded process; the kernel may show them a moment later."""
        held = self._held.get(pid)
        return (None, None) if held is None else held.how_it_ended()

    def descend_from(self, pid: int, name: str) -> None:
        """Record and watch the one process that all others of the engine descend from.

        Without this call, descendants of this process that carry no tag belong to the engine too: a process
        that has set its title may have lost its tag. That is wrong where this process hosts several engines.

        Parameters
        ----------
        pid
            A child of this process that has just been started. It may have died already, but is not reaped.
        name
            Its name as long as it has no title. The process is essential for the engine.

        Raises
        ------
        ProcessLookupError
            There is no such process.
        """
        top = identify(pid, zombie=True)
        if top is None:
            raise ProcessLookupError(f"pid={pid}: there is no such process")
        self._top, self._top_name = pid, name
        self._record((top._replace(name=name),))

    async def scan(self) -> None:
        """Record and watch the processes that were started since; forget helpers that are gone."""
        known = self.processes
        self._record(await run_in_thread(_find_below, self._top, self._before, self.tag, known))
        for pid, held in list(self._held.items()):
            if not _is_essential(held.process.name) and not held.alive():
                held.close()
                del self._held[pid]

    async def sweep(self) -> None:
        """Record every process that carries the tag, whatever its parent is. Slower than ``scan``."""
        self._record(await run_in_thread(_find_tagged, self.tag))

    async def first_death(self) -> Ended:
        """Wait until a watched process has ended."""
        await self._died.wait()
        return self._deaths[0]

    def kill(self) -> None:
        """Send SIGKILL to every recorded process."""
        for held in self._held.values():
            held.kill()

    async def end(self, timeout: float, reap: Callable[[], None]) -> tuple[ProcessId, ...]:
        """Kill everything until a sweep finds nothing alive.

        Parameters
        ----------
        timeout
            Seconds that processes may take to end after SIGKILL.
        reap
            Waits, without blocking, for those that are the host's own children.

        Returns
        -------
        tuple of ProcessId
            The processes that are still alive. An empty tuple is the proof.
        """
        self.unwatch()
        until = time.monotonic() + timeout
        while True:
            await self.scan()
            self.kill()
            reap()
            left = self.alive()
            if not left:
                await self.sweep()
                left = self.alive()
                if not left:
                    return ()
            if time.monotonic() >= until:
                return left
            await asyncio.sleep(self._timeouts.gone_poll)

    async def all_gone(self, until: Callable[[], float]) -> bool:
        """Wait until no recorded process runs, and return True, or until that time on the monotonic clock.

        ``until`` is called repeatedly, since the time may be moved forward meanwhile.
        """
        while self.alive():
            if time.monotonic() >= until():
                return False
            await asyncio.sleep(self._timeouts.gone_poll)
        return True

    def alive(self) -> tuple[ProcessId, ...]:
        """Return the recorded processes that still run."""
        return tuple(held.process for held in self._held.values() if held.alive())

    def unwatch(self) -> None:
        """Stop watching for deaths, permanently: they are intended from now on."""
        self._unwatched = True
        for pid in self._watched:
            self._held[pid].unwatch()
        self._watched.clear()
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    def close(self) -> None:
        """Close the descriptors."""
        self.unwatch()
        for held in self._held.values():
            held.close()

    def _record(self, found: Iterable[ProcessId]) -> None:
        for seen in found:
            named = seen.pid == self._top and not _is_essential(seen.name)
            process = seen._replace(name=self._top_name) if named else seen
            held = self._held.get(process.pid)
            if held is not None and same(held.process, process):
                if process.name:  # it may have set its title since; a zombie has none
                    held.process = process
            else:
                if held is not None:
                    held.close()
                held = self._held[process.pid] = PidfdHandle(process)
            if not self._unwatched and _is_essential(process.name):
                self._watch(process.pid, held)

    def _watch(self, pid: int, held: PidfdHandle) -> None:
        if any(ended.process.pid == pid for ended in self._deaths):
            return
        self._watched.add(pid)
        if not held.watch(partial(self._on_death, pid)) and self._poll is None:
            self._poll = asyncio.get_running_loop().create_task(self._poll_deaths())

    def _on_death(self, pid: int) -> None:
        held = self._held[pid]
        held.unwatch()
        self._watched.discard(pid)
        self._deaths.append(Ended(held.process, *held.how_it_ended()))
        self._died.set()

    async def _poll_deaths(self) -> None:
        while True:
            await asyncio.sleep(self._timeouts.death_poll)
            for pid in [pid for pid in self._watched if not self._held[pid].alive()]:
                self._on_death(pid)


def new_tag() -> str:
    """Return a tag that no other engine has."""
    return f"{os.getpid()}-{time.time_ns()}".ljust(TAG_LENGTH, "-")


def process_id(pid: int) -> ProcessId:
    """Return the identity of the process that has this pid now, with its title as its name.

    Raises
    ------
    ProcessLookupError
        There is no such process, or no ``/proc``.
    """
    process = identify(pid)
    if process is None:
        raise ProcessLookupError(f"pid={pid}: /proc shows no such process")
    found = psutil.Process(pid)
    return process._replace(name=_title(found.cmdline(), found.name()))


def _is_essential(name: str) -> bool:
    """Return whether an engine needs this process, as opposed to a helper such as a compiler."""
    return "::" in name


def _is_about_to_exec(process: psutil.Process, command: list[str], thread: str) -> bool:
    """Return whether a process still has its parent's name: it was just forked, to become something else."""
    parent = psutil.Process(process.ppid())
    # A process that does not call exec names its first thread before its title, which it may never set.
    return parent.cmdline() == command and ("::" not in thread or parent.name() == thread)


def _title(command: list[str], thread: str = "") -> str:
    for word in command:
        if "::" in word and " " not in word:
            return word
    if "--multiprocessing-fork" in command:
        # It has not set its title yet, or could not. Its first thread may have the name.
        return thread if "::" in thread else _SPAWNED
    return command[0].rpartition("/")[2] if command else ""


def _descendants(pid: int) -> list[int]:
    return [*reaper.tree_below([pid])]


def _find_below(
    top: int | None, before: frozenset[int], tag: str, known: Iterable[ProcessId]
) -> list[ProcessId]:
    found = _descendants(os.getpid()) if top is None else [top, *_descendants(top)]
    # A forked process shows the host's own environment, which has no tag.
    new = _identify(child for child in found if child not in before and _tag(child) in (tag, None))
    new_pids = {process.pid for process in new}
    # A known process needs no tag to be found again: it may be setting its title, over its environment.
    remaining = {process.pid: process for process in known if process.pid not in new_pids}
    return new + [each for each in _identify(remaining) if same(each, remaining[each.pid])]


def _find_tagged(tag: str) -> list[ProcessId]:
    return _identify(pid for pid in reaper.list_pids() if pid != os.getpid() and _tag(pid) == tag)


def _tag(pid: int) -> str | None:
    """Return the tag in the environment that a process was started with; empty if it cannot be read."""
    try:
        return psutil.Process(pid).environ().get(TAG)
    except (psutil.Error, OSError):
        return ""


def _identify(pids: Iterable[int]) -> list[ProcessId]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            identity = identify(pid)
            process = psutil.Process(pid)
            command = process.cmdline()
            # The resource tracker of multiprocessing serves the host as long as the host lives.
            if identity is not None and not any("resource_tracker" in word for word in command):
                thread = process.name()
                name = "" if _is_about_to_exec(process, command, thread) else _title(command, thread)
                if alive(identity):  # otherwise the name may be that of the pid's next process
                    found.append(identity._replace(name=name))
    return found
