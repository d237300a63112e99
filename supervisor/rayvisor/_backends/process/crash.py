"""The end of this process as a crash: last words, children and logs first, then ``os._exit``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable

from rayvisor._backends.process.identity import own_identity
from rayvisor._backends.process.killing import Killing
from rayvisor._core.protocol.wire import ProcessId
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ProcessTimeouts

__all__ = ["arm", "end_children", "end_process"]


def arm(code: int, timeout: float) -> threading.Timer:
    """Exit this process with ``code`` in ``timeout`` seconds, whatever hangs; ``cancel`` disarms it."""
    timer = threading.Timer(timeout, os._exit, (code,))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread can be started: the exit then has no time limit
        timer.start()
    return timer


def end_process(code: int, steps: Iterable[Callable[[], object]]) -> None:
    """Run the steps that come before the exit, then exit. A step that raises does not delay the others."""
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the process exits in any case
            with contextlib.suppress(Exception):
                sys.stderr.write(f"rayvisor: {type(error).__name__}: {error}\n")
    _flush()
    os._exit(code)


def end_children(
    timeout: float, *, timeouts: ProcessTimeouts = DEFAULT_TIMEOUTS.process
) -> tuple[ProcessId, ...]:
    """Kill everything below this process, wait at most ``timeout`` seconds, and return what was killed."""
    until = time.monotonic() + timeout
    killing = Killing((own_identity(),), suspend_timeout=timeout / 4)
    while not killing.proven and time.monotonic() < until:
        if killing.round():
            time.sleep(timeouts.gone_poll)
    return tuple(killing.killed.values())


def _flush() -> None:
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]  # noqa: SLF001 - as logging.shutdown does
        handler = reference()
        with contextlib.suppress(Exception):
            if handler is not None:
                handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
