"""Finds out why an engine has ended, from its processes and its log."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rayvisor._backends.host.log_reading import TAIL_BYTES, WORKER_DIED, exit_code_of_worker, log_causes
from rayvisor._backends.process.engine_tree import Ended, ProcessTree
from rayvisor._core.protocol.causes import Causes
from rayvisor.faults import Cause, Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, HostTimeouts

__all__ = ["describe_death", "log_size", "log_tail", "read_log"]

_MOST_READ_BYTES = 1 << 20


def read_log(log_file: str, since: int = 0, most: int = _MOST_READ_BYTES) -> str:
    """Read a log from an offset on, at most its last ``most`` bytes; empty if there is none."""
    try:
        with Path(log_file).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - most))
            return file.read().decode(errors="ignore")
    except OSError:
        return ""


def log_size(log_file: str) -> int:
    """Return the size of a log in bytes; 0 if there is none."""
    try:
        return Path(log_file).stat().st_size
    except OSError:
        return 0


def log_tail(log_file: str) -> str:
    """Read the last 8 KB of a log."""
    return read_log(log_file, most=TAIL_BYTES)


async def describe_death(
    tree: ProcessTree,
    log_file: str,
    phase: str,
    exit_code_of: Callable[[int], int | None],
    since: int = 0,
    outer: Causes = (),
    *,
    timeouts: HostTimeouts = DEFAULT_TIMEOUTS.host,
) -> Termination:
    """Find out why an engine has ended: which process first, how, and with which exceptions in its log.

    Parameters
    ----------
    tree
        Its processes.
    log_file
        The file with their output.
    phase
        The engine's phase when it ended.
    exit_code_of
        Returns the exit code of a child process of the host; negative is the number of a signal.
    since
        Offset in the log before which there are no causes.
    outer
        Causes that are known already and are consequences of those found here.
    timeouts
        How long the exit code and the last lines of the log are waited for.
    """
    until = time.monotonic() + timeouts.log_settle
    while True:
        text = read_log(log_file, since)
        ended, code, number = _first_to_blame(tree, text, exit_code_of)
        # Its exit code and its last lines may arrive a moment later than the notification of its end.
        if code or number or time.monotonic() >= until:
            break
        await asyncio.sleep(timeouts.log_poll)
    causes, traceback = _written(text, ended)
    worker = ended is not None and _is_worker(ended)
    if number is not None and causes and not worker:
        causes, traceback = (), ""
    chain = [*outer, Cause("EngineDied", f"the engine ended by itself while {phase}")]
    if ended is not None:
        chain.append(_killed(ended, code, number))
    chain += [cause for cause in causes if cause not in chain]
    return Termination(
        causes=tuple(chain),
        traceback=traceback,
        exit_code=code,
        signal=number,
        phase=phase,
        log_file=log_file,
    )


def _first_to_blame(
    tree: ProcessTree, text: str, exit_code_of: Callable[[int], int | None]
) -> tuple[Ended | None, int | None, int | None]:
    """Return the process that ended first; processes that exited in order afterwards do not count."""
    deaths = [(ended, *_how(ended, tree, text, exit_code_of)) for ended in tree.deaths]
    for ended, code, number in deaths:
        if code != 0:
            return ended, code, number
    return deaths[0] if deaths else (None, None, None)


def _written(text: str, ended: Ended | None) -> tuple[Causes, str]:
    """Return the exceptions of a log that are causes of the end, with the root cause's traceback.

    When a worker ends, EngineCore logs that before it fails itself: exceptions after that line are
    consequences. An exception before it, or without it, is the reason for the worker's end.
    """
    noticed = text.find(WORKER_DIED)
    if noticed < 0 or ended is None or not _is_worker(ended):
        return log_causes(text)
    return log_causes(text[:noticed])


def _is_worker(ended: Ended) -> bool:
    return "Worker" in ended.process.name


def _how(
    ended: Ended, tree: ProcessTree, text: str, exit_code_of: Callable[[int], int | None]
) -> tuple[int | None, int | None]:
    code, number = ended.exit_code, ended.signal
    if code is None and number is None:
        code, number = tree.how_it_ended(ended.process.pid)
    if code is None and number is None:
        found = exit_code_of(ended.process.pid)
        if found is None and _is_worker(ended):
            found = exit_code_of_worker(text)
        if found is not None:
            code, number = (None, -found) if found < 0 else (found, None)
    return code, number


def _killed(ended: Ended, code: int | None, number: int | None) -> Cause:
    who = f"{ended.process.name.rpartition('::')[2] or 'a process'} (pid {ended.process.pid})"
    if number is not None:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return Cause("ProcessKilled", f"{who} was ended by {name}")
    if code is not None:
        return Cause("ProcessExited", f"{who} ended with exit code {code}")
    return Cause("ProcessEnded", f"{who} has ended; how is not known")
