"""The end of this process, as a crash: last words, children, logs, then ``os._exit``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable

from rayvisor._engine.wire import ProcessId
from rayvisor._process.tree import alive, hold, identify, kill, tree

__all__ = ["arm", "end_children", "end_process"]

_PAUSE_SECONDS = 0.01


def arm(code: int, deadline: float) -> threading.Timer:
    """See that this process ends in ``deadline`` seconds, whatever hangs; ``cancel`` takes that back."""
    timer = threading.Timer(deadline, os._exit, (code,))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread to be had: then without
        timer.start()
    return timer


def end_process(code: int, steps: Iterable[Callable[[], object]]) -> None:
    """Carry out what has to come before the end, and end the process. No step that raises holds it up."""
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the end comes first
            with contextlib.suppress(Exception):
                sys.stderr.write(f"rayvisor: {type(error).__name__}: {error}\n")
    _flush()
    os._exit(code)


def end_children(deadline: float) -> tuple[ProcessId, ...]:
    """Kill everything below this process, and wait until it is gone; what was killed."""
    until = time.monotonic() + deadline
    held_until = time.monotonic() + deadline / 4
    me = identify(os.getpid())
    known: dict[int, ProcessId] = {}
    killed: dict[int, ProcessId] = {}
    still, quiet = False, 0
    while me is not None and quiet < 2 and time.monotonic() < until:  # noqa: PLR2004 - one may just be forking
        # What was found keeps being looked below: its children lose their parent when it dies.
        known |= {process.pid: process for process in tree(me, *known.values())}
        living = [process for process in known.values() if alive(process)]
        # Killed while it forks, a process leaves a child whose parent nobody knows: so all are stopped first,
        # and looked below once more when they stand still.
        standing = [hold(process) for process in living]
        were_still, still = still, all(standing)
        if not (were_still and still) and time.monotonic() < held_until:
            time.sleep(_PAUSE_SECONDS / 10)
            continue
        killed |= {process.pid: process for process in living if kill(process)}
        quiet = 0 if living else quiet + 1
        time.sleep(_PAUSE_SECONDS if living else 0.0)
    return tuple(killed.values())


def _flush() -> None:
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]  # noqa: SLF001 - as logging.shutdown does
        handler = reference()
        with contextlib.suppress(Exception):
            if handler is not None:
                handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
