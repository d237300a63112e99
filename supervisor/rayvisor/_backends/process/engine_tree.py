"""The processes of one engine: found, watched, killed, proven gone.

Processes are known by (pid, start time), and held by a pidfd, so that nothing here ever touches a
process that got a pid second. A process belongs to the engine when it descends from the host, was not
there before and carries no other engine's tag in its environment, or when it carries the engine's own
tag: that finds those whose parent died first, which the process table shows as somebody else's children.
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

from rayvisor._backends.process.pidfd import SAME_START_SECONDS, PidfdHandle
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["TAG", "TAG_LENGTH", "Ended", "ProcessTree", "new_tag", "process_id"]

TAG = "RAYVISOR_ENGINE"
"""The environment variable by which an engine's processes are known."""
TAG_LENGTH = 32
"""Every tag has so many characters: one can be written over another."""

_POLL_SECONDS = 0.02
_SPAWNED = "starting::process"


class Ended(NamedTuple):
    """A process that has ended, and how, as far as the system tells."""

    process: ProcessId
    exit_code: int | None
    signal: int | None


class ProcessTree:
    """The processes of one engine.

    Parameters
    ----------
    tag
        Value of the environment variable `TAG` that its processes were started with.
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._top: int | None = None
        self._top_name = ""
        self._held: dict[int, PidfdHandle] = {}
        self._watched: set[int] = set()
        self._before = frozenset(_descendants(os.getpid()))
        self._deaths: list[Ended] = []
        self._died = asyncio.Event()
        self._poll: asyncio.Task[None] | None = None
        self._over = False

    @property
    def processes(self) -> tuple[ProcessId, ...]:
        """All that were recorded: those the engine cannot live without, alive or not, and helpers alive."""
        return tuple(held.process for held in self._held.values())

    @property
    def deaths(self) -> tuple[Ended, ...]:
        """Watched processes that have ended, first to last."""
        return tuple(self._deaths)

    def how_it_ended(self, pid: int) -> tuple[int | None, int | None]:
        """Exit code and signal of a recorded process: it may be known a moment after its death only."""
        held = self._held.get(pid)
        return (None, None) if held is None else held.how_it_ended()

    def descend_from(self, pid: int, name: str) -> None:
        """Record and watch the one process that all others of the engine descend from.

        Where there is none, what descends from this process without a tag is the engine's as well: a process
        that has set its title may have lost its tag. That is wrong where this process hosts several engines.

        Parameters
        ----------
        pid
            A child of this process that has just been started: it may have died at its birth already.
        name
            What it is called for as long as it has no title. The engine cannot live without it.
        """
        self._top, self._top_name = pid, name
        self._record((ProcessId(pid, psutil.Process(pid).create_time(), name),))

    async def scan(self) -> None:
        """Record and watch the processes that have come up since; forget compilers that have gone."""
        known = self.processes
        self._record(await asyncio.to_thread(_find_below, self._top, self._before, self.tag, known))
        for pid, held in list(self._held.items()):
            if not _is_essential(held.process.name) and not held.alive():
                held.close()
                del self._held[pid]

    async def sweep(self) -> None:
        """Record every process that carries the tag, whoever its parent is. Slower than ``scan``."""
        self._record(await asyncio.to_thread(_find_tagged, self.tag))

    async def first_death(self) -> Ended:
        """Wait until a watched process has ended."""
        await self._died.wait()
        return self._deaths[0]

    def kill(self) -> None:
        """SIGKILL to every recorded process."""
        for held in self._held.values():
            held.kill()

    async def end(self, seconds: float, reap: Callable[[], None]) -> tuple[ProcessId, ...]:
        """Kill everything until a sweep finds nothing alive, for at most ``seconds``.

        Parameters
        ----------
        seconds
            How long processes may take to obey SIGKILL.
        reap
            Waits, without blocking, for those that are the host's own children.

        Returns
        -------
        tuple of ProcessId
            What is still alive: empty is the proof.
        """
        self.unwatch()
        until = time.monotonic() + seconds
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
            await asyncio.sleep(0.005)

    async def all_gone(self, until: Callable[[], float]) -> bool:
        """Wait until no recorded process runs any more, or that time on the monotonic clock has come.

        The time is asked for again and again: it may be moved forward meanwhile.
        """
        while self.alive():
            if time.monotonic() >= until():
                return False
            await asyncio.sleep(_POLL_SECONDS / 4)
        return True

    def alive(self) -> tuple[ProcessId, ...]:
        """The recorded processes that run still."""
        return tuple(held.process for held in self._held.values() if held.alive())

    def unwatch(self) -> None:
        """Stop listening for deaths, for good: those that follow are asked for."""
        self._over = True
        for pid in self._watched:
            self._held[pid].unwatch()
        self._watched.clear()
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    def close(self) -> None:
        """Give the descriptors back."""
        self.unwatch()
        for held in self._held.values():
            held.close()

    def _record(self, found: Iterable[ProcessId]) -> None:
        for seen in found:
            named = seen.pid == self._top and not _is_essential(seen.name)
            process = seen._replace(name=self._top_name) if named else seen
            held = self._held.get(process.pid)
            if held is not None and abs(held.process.start_time - process.start_time) < SAME_START_SECONDS:
                if process.name:  # it may have set its title since; a zombie has none
                    held.process = process
            else:
                if held is not None:
                    held.close()
                held = self._held[process.pid] = PidfdHandle(process)
            if not self._over and _is_essential(process.name):
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
            await asyncio.sleep(_POLL_SECONDS)
            for pid in [pid for pid in self._watched if not self._held[pid].alive()]:
                self._on_death(pid)


def new_tag() -> str:
    """Make a tag that no other engine has."""
    return f"{os.getpid()}-{time.time_ns()}".ljust(TAG_LENGTH, "-")


def process_id(pid: int) -> ProcessId:
    """Name a process in a way that a reuse of its pid does not fool."""
    found = psutil.Process(pid)
    return ProcessId(pid, found.create_time(), _title(found.cmdline(), found.name()))


def _is_essential(name: str) -> bool:
    """Whether an engine cannot live without this process, as opposed to a compiler that comes and goes."""
    return "::" in name


def _is_about_to_exec(process: psutil.Process, command: list[str], thread: str) -> bool:
    """Whether a process still goes by its parent's name: forked a moment ago, to become something else."""
    parent = psutil.Process(process.ppid())
    # One that stays what it was forked as names its first thread before its title, which it may never set.
    return parent.cmdline() == command and ("::" not in thread or parent.name() == thread)


def _title(command: list[str], thread: str = "") -> str:
    for word in command:
        if "::" in word and " " not in word:
            return word
    if "--multiprocessing-fork" in command:
        # It has not set its title yet, or could not: then its first thread may bear the name.
        return thread if "::" in thread else _SPAWNED
    return os.path.basename(command[0]) if command else ""  # noqa: PTH119 - a title need not be a path


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def _find_below(
    top: int | None, before: frozenset[int], tag: str, known: Iterable[ProcessId]
) -> list[ProcessId]:
    found = _descendants(os.getpid()) if top is None else [top, *_descendants(top)]
    # A forked process shows the host's own environment, without a tag.
    new = _identify(child for child in found if child not in before and _tag(child) in (tag, None))
    there = {process.pid for process in new}
    # One that was found needs no tag to be found again: it may be setting its title, over its environment.
    again = _identify(process.pid for process in known if process.pid not in there)
    starts = {process.pid: process.start_time for process in known}
    return new + [each for each in again if abs(each.start_time - starts[each.pid]) < SAME_START_SECONDS]


def _find_tagged(tag: str) -> list[ProcessId]:
    return _identify(pid for pid in psutil.pids() if pid != os.getpid() and _tag(pid) == tag)


def _tag(pid: int) -> str | None:
    """Tag of a process, as its environment had it when it was started; empty when it cannot be read."""
    try:
        return psutil.Process(pid).environ().get(TAG)
    except (psutil.Error, OSError):
        return ""


def _identify(pids: Iterable[int]) -> list[ProcessId]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            command = process.cmdline()
            # The resource tracker of multiprocessing serves the host as long as it lives.
            if not any("resource_tracker" in word for word in command):
                thread = process.name()
                name = "" if _is_about_to_exec(process, command, thread) else _title(command, thread)
                found.append(ProcessId(pid, process.create_time(), name))
    return found
