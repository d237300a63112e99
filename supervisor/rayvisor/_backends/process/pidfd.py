"""A handle on one process: a pidfd that refers to it whatever becomes of its pid.

A pidfd becomes readable when all of its process is gone, its memory included. That proves the end, but
reports it late: releasing the 600 MB of an EngineCore takes 50 to 100 ms, while its first threads are
gone after one. Some of its threads are therefore watched too: when one ends, the whole process may have
been told to exit, and the kernel's record of the process shows whether it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from rayvisor._backends.process import identity
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["PidfdHandle"]

_WATCHED_THREADS = 3
"""Number of threads of a process that are watched: its oldest, which do not come and go."""

# linux/pidfd.h: struct pidfd_info as of its first version, and the ioctl that fills it.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9

_PF_EXITING = 0x4
_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})


class PidfdHandle:
    """A handle on a process; on kernels without pidfds it falls back to ``/proc``."""

    __slots__ = ("_fd", "_loop", "_threads", "process")

    def __init__(self, process: ProcessId) -> None:
        self.process = process
        self._fd = -1
        self._threads: dict[int, int] = {}  # thread -> descriptor
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._fd = os.pidfd_open(process.pid)
            # Compared after the pidfd is open: it ended before, and another process has its pid now.
            if identity.find(process) is None:
                self.close()

    def alive(self) -> bool:
        """Return whether anything of the process is left: one thread, or its memory."""
        if self._fd >= 0:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            return not poller.poll(0)
        return identity.alive(self.process)

    def exiting(self) -> bool:
        """Return whether it was killed, or exits: it runs no more code, even while it is being taken down."""
        return not self.alive() or self._status_if_exiting() is not None

    def kill(self) -> None:
        """Send SIGKILL to this process and to no other."""
        with contextlib.suppress(ProcessLookupError):
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            elif self.alive():
                os.kill(self.process.pid, signal.SIGKILL)

    def how_it_ended(self) -> tuple[int | None, int | None]:
        """Return the exit code and the signal, as far as the kernel shows them at this moment."""
        status = self._status_if_exiting()
        if status is None:
            status = self._status_once_reaped()
        if status is None:
            return None, None
        if os.WIFSIGNALED(status):
            return None, os.WTERMSIG(status)
        return os.waitstatus_to_exitcode(status), None

    # -- notification of its death --------------------------------------------------------------

    def watch(self, on_death: Callable[[], object]) -> bool:
        """Call ``on_death`` once it exits. Call this again to watch threads that were started since.

        Returns
        -------
        bool
            Whether the kernel can notify; if not, poll ``alive``.
        """
        if self._fd < 0:
            return False
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, on_death)
        if len(self._threads) < _WATCHED_THREADS:
            self._watch_threads(self._loop, on_death)
        return True

    def unwatch(self) -> None:
        """Stop the notification."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.remove_reader(self._fd)
            for fd in self._threads.values():
                loop.remove_reader(fd)
                os.close(fd)
            self._threads.clear()

    def close(self) -> None:
        """Close the descriptors."""
        self.unwatch()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _watch_threads(self, loop: asyncio.AbstractEventLoop, on_death: Callable[[], object]) -> None:
        pid = self.process.pid
        with contextlib.suppress(OSError):
            for thread in sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()):
                # The end of the first thread is reported only with that of the whole process.
                if thread != pid and thread not in self._threads and len(self._threads) < _WATCHED_THREADS:
                    fd = self._threads[thread] = os.pidfd_open(thread, _PIDFD_THREAD)
                    loop.add_reader(fd, self._thread_ended, thread, on_death)

    def _thread_ended(self, thread: int, on_death: Callable[[], object]) -> None:
        fd = self._threads.pop(thread)
        if self._loop is not None:
            self._loop.remove_reader(fd)
        os.close(fd)
        if self.exiting():
            on_death()

    # -- the kernel's record --------------------------------------------------------------------

    def _status_if_exiting(self) -> int | None:
        """Return the wait status of a process that is being taken down or is a zombie; None otherwise.

        The kernel shows it to every process that may trace this one, parent or not. Newer kernels do so from
        the moment at which the whole process was told to exit, older ones from the end of its first thread.
        """
        stat = identity.find(self.process)
        if stat is None or stat.exit_status is None:
            return None
        status = stat.exit_status
        if stat.state == "Z" or stat.flags & _PF_EXITING:
            return status
        # A process that is stopped, or was, has the signal that stopped it there.
        return status if status and stat.state not in "Tt" and status not in _STOPS else None

    def _status_once_reaped(self) -> int | None:
        """Return the wait status that newer kernels show through the pidfd once the parent has waited."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                request = _PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13)
                mask, *_, status = _PIDFD_INFO.unpack(fcntl.ioctl(self._fd, _PIDFD_GET_INFO, request))
                if mask & _PIDFD_INFO_EXIT:
                    return int(status)
        return None
