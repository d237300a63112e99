"""The host's side of the template: start it, wait for its imports, have a process forked, end it."""

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
from rayvisor.timeouts import DEFAULT_TIMEOUTS, VllmTimeouts

__all__ = ["Template", "TemplateGoneError", "TemplateMismatchError"]

_TAG = "template".ljust(TAG_LENGTH, "-")
"""The tag of the template, which belongs to no engine."""
_PROGRAM = "from rayvisor._backends.vllm.forking import serve; serve({descriptor}, {host_check})"
_FORK_MARKER = "--multiprocessing-fork"
"""Argument that marks a fork without a title as a process of multiprocessing, like a spawned one."""


class TemplateGoneError(Exception):
    """The template has ended, cannot be used, or does not reply."""


class TemplateMismatchError(TemplateGoneError):
    """The template has loaded its libraries with other environment variables."""


class Template:
    """A running template. The constructor starts it; its imports take about 13 s.

    Parameters
    ----------
    log_file
        The template writes its output to this file.
    timeouts
        Timeouts and intervals of the template and of its forks.
    """

    def __init__(self, log_file: str, *, timeouts: VllmTimeouts = DEFAULT_TIMEOUTS.vllm) -> None:
        self.timeouts = timeouts
        """Its timeouts and intervals."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self._load_environment: dict[str, str] | None = None
        self._lock = threading.Lock()
        program = _PROGRAM.format(descriptor=theirs.fileno(), host_check=timeouts.host_check)
        flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - multiprocessing passes them on with it
        environment = {
            **os.environ,
            **expected_additions(os.environ),
            TAG: _TAG,
            # Everything that can be imported here can be imported there.
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            with theirs, Path(log_file).open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603 - the command is forking.py
                    [sys.executable, *flags, "-c", program, _FORK_MARKER],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                )
            on_failure.pop_all()
        self.pid = self._process.pid
        self._began = time.monotonic()

    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def wait_ready(self, cancelled: Callable[[], bool]) -> None:
        """Wait until it has imported everything.

        Parameters
        ----------
        cancelled
            Returns whether to give up.

        Raises
        ------
        TemplateGoneError
            It has ended, makes no progress, or cannot be used; the message says why.
        TemplateMismatchError
            A variable that a library reads while it is loaded had another value than it has here.
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
            raise TemplateMismatchError(f"it was loaded with another value of {', '.join(sorted(other))}")

    def _wait_loaded(self, cancelled: Callable[[], bool]) -> dict[str, str]:
        with self._lock:
            last, changed = -1.0, time.monotonic()
            while not self._has_message(self.timeouts.template_poll):
                now = time.monotonic()
                if cancelled():
                    raise TemplateGoneError("the start was cancelled")
                if (used := self._processor_seconds()) != last:
                    last, changed = used, now
                idle = now - changed > self.timeouts.template_idle
                if idle or now - self._began > self.timeouts.template_import:
                    raise TemplateGoneError(f"it has not come up, and was idle for {now - changed:.0f} s")
            text = self._receive()[0]
        if not text:
            raise TemplateGoneError("it has ended")
        greeting = json.loads(text)
        if greeting["refusal"]:
            raise TemplateGoneError(greeting["refusal"])
        return dict(greeting["environment"])

    def fork(self, tag: str, descriptors: list[int]) -> tuple[int, int]:
        """Have a process forked, and return its pid and a pidfd. The template must be ready.

        Parameters
        ----------
        tag
            The tag of the process.
        descriptors
            The descriptors that it inherits. The first one stays with the template, which writes the exit
            code of the process to it.

        Raises
        ------
        TemplateGoneError
            No process was forked, or its pid is not known.
        """
        with self._lock:
            try:
                socket.send_fds(self._control, [json.dumps({"tag": tag}).encode()], descriptors)
            except OSError as error:
                raise TemplateGoneError(str(error)) from error
            if not self._has_message(self.timeouts.template_answer):
                raise TemplateGoneError(f"it has not replied for {self.timeouts.template_answer:g} s")
            message, received = self._receive()
            if not message or not received:
                raise TemplateGoneError("it has ended")
            return int(message), received[0]

    def end(self) -> None:
        """Kill it, whatever its state, and wait for its end, for about 50 ms. Its forks live on."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # wakes up a thread that waits for it
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._control.close()

    def _has_message(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            message, descriptors, _, _ = socket.recv_fds(
                self._control, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise TemplateGoneError(str(error)) from error
        return message, list(descriptors)

    def _processor_seconds(self) -> float:
        with contextlib.suppress(psutil.Error):
            return sum(psutil.Process(self.pid).cpu_times()[:2])
        return 0.0
