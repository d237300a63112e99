"""One process, held by a descriptor that stands for it whatever becomes of its pid.

A pidfd turns readable when all of its process is gone, its memory included: that is the proof that it is
gone, but late news of its death. Taking down the 600 MB of an EngineCore takes 50 to 100 ms; its first
threads are gone after one. So some of its threads are watched too: when one ends, the process may have
been told to end as a whole, and the system says whether it has.
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

import psutil

from rayvisor._core.protocol.wire import ProcessId

__all__ = ["SAME_START_SECONDS", "PidfdHandle"]

SAME_START_SECONDS = 0.5
"""Start times so close are the same."""

_SIGNS = 3
"""So many threads of a process are watched: old ones, which do not come and go."""

# linux/pidfd.h: struct pidfd_info as of its first version, and the ioctl that fills it.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9

# Places in /proc/PID/stat, counted from the state on, and a flag of the second one.
_STATE, _FLAGS, _STATUS = 0, 6, 49
_PF_EXITING = 0x4
_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})


class PidfdHandle:
    """A recorded process."""

    __slots__ = ("_fd", "_loop", "_signs", "process")

    def __init__(self, process: ProcessId) -> None:
        self.process = process
        self._fd = -1
        self._signs: dict[int, int] = {}  # thread -> descriptor
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._fd = os.pidfd_open(process.pid)
            if not self._is_same():  # it ended before it could be held, and its pid is somebody else's
                self.close()

    def alive(self) -> bool:
        """Whether anything of it is left: one thread, or its memory."""
        if self._fd >= 0:
            waiting = select.poll()
            waiting.register(self._fd, select.POLLIN)
            return not waiting.poll(0)
        with contextlib.suppress(psutil.NoSuchProcess):
            status = psutil.Process(self.process.pid).status()
            return self._is_same() and status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return False

    def doomed(self) -> bool:
        """Whether it was killed, or exits: it does nothing more, even while it is still being taken down."""
        return not self.alive() or self._status_if_doomed() is not None

    def kill(self) -> None:
        """SIGKILL, to this process and no other."""
        with contextlib.suppress(ProcessLookupError):
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            elif self.alive():
                os.kill(self.process.pid, signal.SIGKILL)

    def how_it_ended(self) -> tuple[int | None, int | None]:
        """Exit code and signal, as far as the system tells at this moment."""
        status = self._status_if_doomed()
        if status is None:
            status = self._status_once_waited_for()
        if status is None:
            return None, None
        if os.WIFSIGNALED(status):
            return None, os.WTERMSIG(status)
        return os.waitstatus_to_exitcode(status), None

    # -- its death as news ----------------------------------------------------------------------

    def watch(self, died: Callable[[], object]) -> bool:
        """Call ``died`` once it is doomed. Call this again to watch threads that have come up since.

        Returns
        -------
        bool
            Whether the system can tell; if not, ask ``alive`` again and again.
        """
        if self._fd < 0:
            return False
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, died)
        if len(self._signs) < _SIGNS:
            self._watch_threads(self._loop, died)
        return True

    def unwatch(self) -> None:
        """Call nothing any more."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.remove_reader(self._fd)
            for fd in self._signs.values():
                loop.remove_reader(fd)
                os.close(fd)
            self._signs.clear()

    def close(self) -> None:
        """Give the descriptors back."""
        self.unwatch()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _watch_threads(self, loop: asyncio.AbstractEventLoop, died: Callable[[], object]) -> None:
        pid = self.process.pid
        with contextlib.suppress(OSError):
            for thread in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):  # noqa: PTH208 - names only
                # The first thread's own end is told with that of the whole process only.
                if thread != pid and thread not in self._signs and len(self._signs) < _SIGNS:
                    fd = self._signs[thread] = os.pidfd_open(thread, _PIDFD_THREAD)
                    loop.add_reader(fd, self._thread_ended, thread, died)

    def _thread_ended(self, thread: int, died: Callable[[], object]) -> None:
        fd = self._signs.pop(thread)
        if self._loop is not None:
            self._loop.remove_reader(fd)
        os.close(fd)
        if self.doomed():
            died()

    # -- what the system says -------------------------------------------------------------------

    def _is_same(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.process.pid).create_time()
            return abs(started - self.process.start_time) < SAME_START_SECONDS
        return False

    def _status_if_doomed(self) -> int | None:
        """Wait status of a process that is being taken down, or waits for its parent; None if neither.

        It is in its stat, for whoever may trace it, parent or not: from the moment at which all of the
        process was told to end, on newer kernels, else from that at which its first thread does.
        """
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8", errors="replace")
            fields = text.rpartition(")")[2].split()
            state, flags, status = fields[_STATE], int(fields[_FLAGS]), int(fields[_STATUS])
        except (OSError, ValueError, IndexError):
            return None
        if state == "Z" or flags & _PF_EXITING:
            return status
        # One that is stopped, or was, has the signal that stopped it there.
        return status if status and state not in "Tt" and status not in _STOPS else None

    def _status_once_waited_for(self) -> int | None:
        """Newer kernels tell it through the pidfd."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                asked = _PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13)
                mask, *_, status = _PIDFD_INFO.unpack(fcntl.ioctl(self._fd, _PIDFD_GET_INFO, asked))
                if mask & _PIDFD_INFO_EXIT:
                    return int(status)
        return None
