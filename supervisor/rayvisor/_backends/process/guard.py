"""A host's side of the reaper: start it, tell it of processes, take leave of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from rayvisor._backends.process import reaper
from rayvisor._backends.process.tree import start_ticks
from rayvisor._core.protocol.wire import ProcessId
from rayvisor._log import get_logger

__all__ = ["Guard"]

log = get_logger("rayvisor.process")


class Guard:
    """A running reaper, watching this process, or a child of it.

    Parameters
    ----------
    key
        The host's key. It is put into this process's environment, so that whatever is started from here on
        carries it; not so where a child is watched, which carries it already.
    with_parent
        Whether the process is ended, with everything of it, when its parent dies.
    child
        Pid of the child to watch in this process's stead.
    log_file
        Where it says what it had to kill; empty: where this process says things.
    """

    def __init__(
        self, key: str, *, with_parent: bool = False, child: int | None = None, log_file: str = ""
    ) -> None:
        me = reaper.read_stat(os.getpid() if child is None else child)
        if me is None:
            raise RuntimeError("/proc does not show the process: it cannot be guarded")
        # The reaper itself must not carry the key: it is no part of what has to go.
        environment = {name: value for name, value in os.environ.items() if name != reaper.MARKER}
        if child is None:
            os.environ[reaper.MARKER] = key
        program = str(Path(reaper.__file__).resolve())
        command = [sys.executable, "-I", "-S", program, str(me.pid), str(me.ticks), key]
        parent = reaper.read_stat(me.ppid) if with_parent else None
        if parent is not None:
            command += [str(parent.pid), str(parent.ticks)]
        with contextlib.ExitStack() as opened:
            said = opened.enter_context(Path(log_file).open("ab")) if log_file else None
            self._starter = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        self.pid = 0

    def wait_ready(self, timeout: float = 10.0) -> int:
        """Wait until the reaper watches; its pid. Blocks for some ten milliseconds."""
        if not self.pid:
            if self._starter.stdout is None:
                raise RuntimeError("the reaper was started without a pipe")
            with self._starter.stdout as output:
                line = output.readline()
            self._starter.wait(timeout)
            if not line:
                raise RuntimeError(f"the reaper did not start: exit status {self._starter.returncode}")
            self.pid = int(line)
        return self.pid

    def record(self, processes: Iterable[ProcessId]) -> None:
        """Tell the reaper of processes; it also finds the host's tree by itself."""
        for process in processes:
            ticks = start_ticks(process)
            if ticks is not None:
                self._say(f"process {process.pid} {ticks}")

    def bye(self) -> None:
        """Take leave: nothing is left that would have to be killed, and the reaper goes."""
        self._say("bye")
        self.close()

    def close(self) -> None:
        """Say no more. A reaper whose process has gone kills what is left of it, and goes, too."""
        if self._starter.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._starter.stdin.close()

    def _say(self, line: str) -> None:
        if self._starter.stdin is None or self._starter.stdin.closed:
            return
        try:
            self._starter.stdin.write(f"{line}\n".encode())
            self._starter.stdin.flush()
        except BrokenPipeError:
            log.warning("process.reaper.gone", reaper=self.pid, unsaid=line)
