"""The host's side of its template: start it, wait until it has imported, have a process forked, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path

import psutil

from rayvisor._backends.process.engine_tree import TAG, TAG_LENGTH
from rayvisor._backends.vllm.environment import expected_additions, load_time_variables
from rayvisor._backends.vllm.forking import MAX_MESSAGE_BYTES

__all__ = ["Template", "TemplateGoneError", "TemplateMismatchError"]

_TAG = "template".ljust(TAG_LENGTH, "-")
"""No engine's."""
_PROGRAM = "from rayvisor._backends.vllm.forking import serve; serve({})"
_FORK_MARKER = "--multiprocessing-fork"
"""A word of the command line: a fork that has no title yet is known by it, like one that was spawned."""
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_IDLE_SECONDS = 15.0
_IMPORT_SECONDS = 600.0


class TemplateGoneError(Exception):
    """The template has ended, cannot be used, or does not answer."""


class TemplateMismatchError(TemplateGoneError):
    """What it has imported, it has imported under other circumstances."""


class Template:
    """A running template. Making one starts it; it imports for some 13 s.

    Parameters
    ----------
    log_file
        Where its output goes.
    """

    def __init__(self, log_file: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self._load_environment: dict[str, str] | None = None
        self._lock = threading.Lock()
        program = _PROGRAM.format(theirs.fileno())
        flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
        environment = {
            **os.environ,
            **expected_additions(os.environ),
            TAG: _TAG,
            # What can be imported here can be there.
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        with theirs, Path(log_file).open("ab") as said:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *flags, "-c", program, _FORK_MARKER],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                pass_fds=(theirs.fileno(),),
            )
        self.pid = self._process.pid
        self._began = time.monotonic()

    def ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    def wait_ready(self, cancelled: Callable[[], bool]) -> None:
        """Wait until it has imported everything.

        Raises
        ------
        TemplateGoneError
            It has ended, stands still, or cannot be used; the message says why.
        TemplateMismatchError
            A variable that a library reads as it is loaded had another value for it than it has here.
        """
        if self._load_environment is None:
            self._load_environment = self._wait_loaded(cancelled)
        wanted = load_time_variables(os.environ)
        other = [
            name
            for name in {**self._load_environment, **wanted}
            if wanted.get(name) != self._load_environment.get(name)
        ]
        if other:
            raise TemplateMismatchError(f"it was loaded with another {', '.join(sorted(other))}")

    def _wait_loaded(self, cancelled: Callable[[], bool]) -> dict[str, str]:
        with self._lock:
            used, changed = -1.0, time.monotonic()
            while not self._has_message(_POLL_SECONDS):
                now = time.monotonic()
                if cancelled():
                    raise TemplateGoneError("it is not waited for any more")
                if (took := self._processor_seconds()) != used:
                    used, changed = took, now
                if now - changed > _IDLE_SECONDS or now - self._began > _IMPORT_SECONDS:
                    raise TemplateGoneError(f"it has not come up, and did nothing for {now - changed:.0f} s")
            text = self._receive()[0]
        if not text:
            raise TemplateGoneError("it has ended")
        said = json.loads(text)
        if said["refusal"]:
            raise TemplateGoneError(said["refusal"])
        return dict(said["environment"])

    def fork(self, tag: str, descriptors: list[int]) -> tuple[int, int]:
        """Have a process forked, once it is ready; give its pid and a pidfd.

        Parameters
        ----------
        tag
            The tag that it is known by.
        descriptors
            What it gets. The first stays with the template, which says on it how the process ended.

        Raises
        ------
        TemplateGoneError
            Nothing was forked, or nobody knows.
        """
        with self._lock:
            try:
                socket.send_fds(self._control, [json.dumps({"tag": tag}).encode()], descriptors)
            except OSError as error:
                raise TemplateGoneError(str(error)) from error
            if not self._has_message(_ANSWER_SECONDS):
                raise TemplateGoneError(f"it has not answered for {_ANSWER_SECONDS:g} s")
            message, given = self._receive()
            if not message or not given:
                raise TemplateGoneError("it has ended")
            return int(message), given[0]

    def end(self) -> None:
        """End it, whatever state it is in; its forks live on. Blocks until it has gone, some 50 ms."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # whoever waits for it wakes up
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._control.close()

    def _has_message(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            message, given, _, _ = socket.recv_fds(
                self._control, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise TemplateGoneError(str(error)) from error
        return message, list(given)

    def _processor_seconds(self) -> float:
        with contextlib.suppress(psutil.Error):
            return sum(psutil.Process(self.pid).cpu_times()[:2])
        return 0.0
