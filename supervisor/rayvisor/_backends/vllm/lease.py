"""The template shared by all engines of this process, and the EngineCores that it forks for vLLM.

It runs as long as a `Lease` is held. If no template can be used, or if it fails, EngineCore is spawned, as
vLLM itself does it. Such a start takes another 13 s of a core and is otherwise the same.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import popen_forkserver, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess, set_spawning_popen
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

from rayvisor._backends.process.engine_tree import TAG
from rayvisor._backends.vllm.forking import InheritedState
from rayvisor._backends.vllm.plugin import METHOD, OWN_METHOD
from rayvisor._backends.vllm.template import Template, TemplateGoneError, TemplateMismatchError
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, VllmTimeouts

__all__ = ["ForkedProcess", "Lease", "engine_cores_from", "forked_from"]

log = get_logger("rayvisor.vllm")

_SPAWNING_ARGUMENTS: Mapping[str, tuple[object, ...]] = {
    "numa_bind": (True,),
    "distributed_executor_backend": ("ray", "external_launcher"),
    "data_parallel_backend": ("ray",),
}
"""Values of engine arguments with which vLLM starts its processes in another way."""
_MAX_FAILURES = 3
_UNKNOWN = 255
"""Exit code of a process whose template has ended before it; multiprocessing uses the same one."""


class _Popen(popen_forkserver.Popen):
    """A process that the template has forked, with the interface that multiprocessing requires.

    Its sentinel is the pidfd of the process. Unlike that of a fork server's child, it does not become ready
    when the template ends.
    """

    _fds: list[int]

    method = "spawn"

    def __init__(self, process_obj: BaseProcess, fork: _ForkContext) -> None:
        self._fork = fork
        self._timeouts = fork.template.timeouts
        self._gone_since = 0.0
        self._poll_lock = threading.Lock()
        super().__init__(process_obj)

    def _launch(self, process_obj: BaseProcess) -> None:
        fork = self._fork
        fork.template.wait_ready(fork.cancelled)
        text = io.BytesIO()
        set_spawning_popen(self)
        try:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            # The variable belongs to the whole host: another engine may have set its own tag meanwhile.
            environment = {**os.environ, TAG: fork.tag}
            reduction.dump(InheritedState(environment, fork.log_file, limits), text)
            reduction.dump(spawn.get_preparation_data(process_obj.name), text)
            reduction.dump(process_obj, text)
        finally:
            set_spawning_popen(None)
        data, data_writer = os.pipe()
        self._status, status_writer = os.pipe()
        try:
            descriptors = [status_writer, data, cast("int", resource_tracker.getfd()), *self._fds]
            self.pid, self.sentinel = fork.template.fork(fork.tag, descriptors)
        except BaseException:
            _close(data_writer, self._status)
            raise
        finally:
            _close(status_writer, data)
        # The child takes the other end of this pipe for a sign that its parent lives, so it stays open.
        kept = (os.dup(data_writer), self._status, self.sentinel)
        self.finalizer = util.Finalize(self, _close, kept)
        with os.fdopen(data_writer, "wb") as pipe:
            pipe.write(text.getbuffer())

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        blocking = flag != os.WNOHANG
        if self.returncode is None and wait([self.sentinel], None if blocking else 0):
            if blocking:
                wait([self._status], self._timeouts.template_status)
            with self._poll_lock:
                if self.returncode is None:
                    self.returncode = self._reported_exit_code()
        return self.returncode

    def _reported_exit_code(self) -> int | None:
        """Return the exit code that the template reports; None as long as it may still do so.

        The template usually reports it immediately, but it may have ended, or be stopped.
        """
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if wait([self._status], self._timeouts.template_status_poll if now == self._gone_since else 0):
            return int(os.read(self._status, 16) or _UNKNOWN)
        return _UNKNOWN if now - self._gone_since > self._timeouts.template_status else None

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.sentinel, sig)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _ForkContext(NamedTuple):
    """The template that forks the processes of the engine that is started in this thread."""

    template: Template
    tag: str
    log_file: str
    cancelled: Callable[[], bool]


class _ThreadState(threading.local):
    fork: _ForkContext | None = None


_thread = _ThreadState()


class ForkedProcess(SpawnProcess):
    """A process that the template forks; it is spawned if that is not possible."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 - multiprocessing calls it by this name
        fork = _thread.fork
        # vLLM binds a process to memory by starting another program in its place.
        if fork is not None and os.fsdecode(spawn.get_executable()) == sys.executable:
            template: Template | None = fork.template
            while template is not None:
                try:
                    return _Popen(process_obj, fork._replace(template=template))
                except TemplateGoneError as gone:
                    if fork.cancelled():
                        raise
                    log.warning("vllm.template.failed", template=template.pid, why=str(gone))
                    _registry.discard(template)
                    # Another one loads the current variables; it is tried once only.
                    again = template is fork.template and isinstance(gone, TemplateMismatchError)
                    template = _registry.get_or_start(fork.log_file, template.timeouts) if again else None
        return popen_spawn_posix.Popen(process_obj)


class _Context(SpawnContext):
    Process = ForkedProcess


class _ContextSelector:
    """Replaces vLLM's ``get_mp_context``, and differs only for an engine that has a template."""

    def __init__(self, original: Callable[[], BaseContext]) -> None:
        self.original = original

    def __call__(self) -> BaseContext:
        context = self.original()
        return _Context() if _thread.fork is not None and isinstance(context, SpawnContext) else context


# -- shared in this process ---------------------------------------------------------------------


class _TemplateRegistry:
    """The one template of this process, and the number of its leases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._template: Template | None = None
        self._leases = 0
        self._failures = 0

    def acquire(self) -> None:
        with self._lock:
            self._leases += 1

    def release(self) -> None:
        with self._lock:
            self._leases -= 1
            last = None
            if not self._leases:
                last, self._template = self._template, None
        if last is not None:
            last.end()

    def get_or_start(self, log_file: str, timeouts: VllmTimeouts) -> Template | None:
        """Return the template; start it if there is none. None after too many failures."""
        with self._lock:
            if self._template is not None and self._template.ended():
                log.info("vllm.template.ended", template=self._template.pid)
                self._template.end()
                self._template = None
            if self._template is None and self._failures < _MAX_FAILURES:
                try:
                    self._template = Template(log_file, timeouts=timeouts)
                except OSError as error:
                    self._failures += 1
                    log.warning("vllm.template.failed", why=str(error))
            return self._template

    def discard(self, template: Template) -> None:
        """End a template that has failed. After `_MAX_FAILURES` of them no other is started."""
        with self._lock:
            failed = self._template is template
            if failed:
                self._template = None
                self._failures += 1
        if failed:
            template.end()

    def clear(self) -> None:
        with self._lock:
            last, self._template = self._template, None
        if last is not None:
            last.end()


_registry = _TemplateRegistry()
atexit.register(_registry.clear)


class Lease:
    """A claim on the template: it runs as long as one lease is open."""

    def __init__(self) -> None:
        self._closed = False
        _registry.acquire()

    def template(
        self,
        arguments: Mapping[str, Any],
        log_file: str,
        *,
        timeouts: VllmTimeouts = DEFAULT_TIMEOUTS.vllm,
    ) -> Template | None:
        """Return the template, and start it if it does not run. It may still be importing.

        Parameters
        ----------
        arguments
            Arguments of the engine.
        log_file
            A new template writes its output to this file.
        timeouts
            Timeouts and intervals of a new template.

        Returns
        -------
        Template or None
            None if such an engine is not forked.
        """
        reason = next(
            (name for name in _SPAWNING_ARGUMENTS if arguments.get(name) in _SPAWNING_ARGUMENTS[name]), ""
        )
        if not os.environ.get(OWN_METHOD):
            reason = METHOD
        if reason or not _has_pidfds():
            log.info("vllm.template.unused", because=reason or "pidfd_open")
            return None
        return _registry.get_or_start(log_file, timeouts)

    def close(self) -> None:
        """Release the claim. If it was the last one, this ends the template and blocks for about 50 ms."""
        if not self._closed:
            self._closed = True
            _registry.release()


def _has_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


@contextlib.contextmanager
def engine_cores_from(
    template: Template | None, tag: str, log_file: str, cancelled: Callable[[], bool]
) -> Iterator[None]:
    """Within this context, an EngineCore that vLLM starts in this thread is forked from the template.

    Parameters
    ----------
    template
        None to have it spawned, as vLLM does.
    tag
        Tag of the engine's processes.
    log_file
        They write their output to this file.
    cancelled
        Returns whether the start was cancelled.
    """
    if template is not None:
        from vllm.v1.engine import utils

        original = getattr(utils, "get_mp_context", None)
        if original is None:
            log.warning("vllm.template.unused", because="vllm.v1.engine.utils.get_mp_context is gone")
            template = None
        elif not isinstance(original, _ContextSelector):
            utils.get_mp_context = _ContextSelector(original)
    with forked_from(template, tag, log_file, cancelled):
        yield


@contextlib.contextmanager
def forked_from(
    template: Template | None, tag: str, log_file: str, cancelled: Callable[[], bool]
) -> Iterator[None]:
    """Within this context, each `ForkedProcess` that this thread starts is forked from the template."""
    _thread.fork = None if template is None else _ForkContext(template, tag, log_file, cancelled)
    try:
        yield
    finally:
        _thread.fork = None
