"""A host's side of the reaper: starting it, naming processes to it, and dismissing it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from rayvisor._backends.process import reaper
from rayvisor._backends.process.identity import alive
from rayvisor._core.protocol.wire import ProcessId
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ProcessTimeouts

__all__ = ["Guard"]

log = get_logger("rayvisor.process")


class Guard:
    """A running reaper that watches this process, or a child of it.

    Parameters
    ----------
    key
        The host's key. It is put into this process's environment, so that everything that is started from now
        on carries it. A child that is watched instead carries it already.
    with_parent
        Whether the process and its whole tree are killed when its parent dies.
    child
        Pid of the child to watch instead of this process.
    log_file
        File to which the reaper writes what it had to kill; empty: this process's standard error.
    timeouts
        Times of the reaper: its start, its scans and its kill.

    Raises
    ------
    RuntimeError
        ``/proc`` does not show the process.
    """

    def __init__(
        self,
        key: str,
        *,
        with_parent: bool = False,
        child: int | None = None,
        log_file: str = "",
        timeouts: ProcessTimeouts = DEFAULT_TIMEOUTS.process,
    ) -> None:
        self._timeouts = timeouts
        guarded = reaper.read_stat(os.getpid() if child is None else child)
        if guarded is None:
            raise RuntimeError("/proc does not show the process: it cannot be guarded")
        # The reaper itself must not carry the key: it is not to be killed with the rest.
        environment = {name: value for name, value in os.environ.items() if name != reaper.MARKER}
        if child is None:
            os.environ[reaper.MARKER] = key
        program = str(Path(reaper.__file__).resolve())
        command = [sys.executable, "-I", "-S", program, str(guarded.pid), str(guarded.start_ticks), key]
        command += [str(timeouts.reaper_scan), str(timeouts.reaper_kill)]
        parent = reaper.read_stat(guarded.ppid) if with_parent else None
        if parent is not None:
            command += [str(parent.pid), str(parent.start_ticks)]
        with contextlib.ExitStack() as opened:
            errors = opened.enter_context(Path(log_file).open("ab")) if log_file else None
            self._starter = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        self.pid = 0

    def wait_ready(self) -> int:
        """Wait until the reaper watches, and return its pid. This blocks for some ten milliseconds.

        Raises
        ------
        RuntimeError
            It did not start in time, or ended instead. What there was of it has been killed.
        """
        if not self.pid:
            if self._starter.stdout is None:
                raise RuntimeError("the reaper was started without a pipe")
            timeout = self._timeouts.reaper_start
            until = time.monotonic() + timeout
            with self._starter.stdout as output:
                line = _read_line(output, until)
            try:
                self._starter.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._starter.kill()
                self._starter.wait()
                self.close()
                raise RuntimeError(f"the reaper did not start within {timeout:g} s") from None
            if not line:
                self.close()
                raise RuntimeError(f"the reaper did not start: exit status {self._starter.returncode}")
            self.pid = int(line)
        return self.pid

    def record(self, processes: Iterable[ProcessId]) -> None:
        """Name processes to the reaper, which also finds the host's tree by itself."""
        for process in processes:
            if alive(process):
                self._write(f"process {process.pid} {process.start_ticks}")

    def bye(self) -> None:
        """Dismiss the reaper: it exits and kills nothing."""
        self._write("bye")
        self.close()

    def close(self) -> None:
        """Close the pipe. Once its process is gone, the reaper kills what is left of it, and exits."""
        if self._starter.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._starter.stdin.close()

    def _write(self, line: str) -> None:
        if self._starter.stdin is None or self._starter.stdin.closed:
            return
        try:
            self._starter.stdin.write(f"{line}\n".encode())
            self._starter.stdin.flush()
        except BrokenPipeError:
            log.warning("process.reaper.gone", reaper=self.pid, unsent=line)


def _read_line(output: IO[bytes], until: float) -> bytes:
    """Read a line from a pipe until that time on the monotonic clock; shorter at its end or at that time."""
    poller = select.poll()
    poller.register(output, select.POLLIN)
    line = b""
    while not line.endswith(b"\n") and poller.poll(max(0.0, until - time.monotonic()) * 1000):
        data = os.read(output.fileno(), 64)
        if not data:
            break
        line += data
    return line
