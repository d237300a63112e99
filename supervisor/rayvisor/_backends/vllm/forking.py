"""The template: a process that has imported vLLM, serves nothing, and forks an EngineCore when control to.

An import of vLLM takes 13 s of a core. The template pays it once, beside the host's own; each EngineCore of
the host is then a fork of it. It has no thread of Python's, has touched no device, and leaves with its host.

It is control through a socket: one message is a process to be, with the descriptors that it gets. It answers
with the pid and a pidfd, and says on a pipe how that process has ended. See ``template.py``, the host's side.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver, process, resource_tracker, spawn
from pathlib import Path
from typing import Any

from rayvisor._backends.process.engine_tree import TAG
from rayvisor._backends.vllm.environment import load_time_variables

__all__ = ["MAX_DESCRIPTORS", "MAX_MESSAGE_BYTES", "InheritedState", "serve"]

MAX_MESSAGE_BYTES = 1 << 16
MAX_DESCRIPTORS = 250
"""The kernel takes no more in one message."""

_HOST_SECONDS = 1.0
"""So often it looks for its host: the socket may live on, in a process that the host has forked."""
_ROLE = "::EngineCore"
_THREADS = "OMP_NUM_THREADS"

_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.core.sched.async_scheduler",
    "vllm.model_executor.model_loader",
)
_WORKERS = {"cpu": "vllm.v1.worker.cpu_worker", "cuda": "vllm.v1.worker.gpu_worker"}


@dataclass(frozen=True)
class InheritedState:
    """What a process gets from the host that is no argument of its own."""

    environment: Mapping[str, str]
    log_file: str
    open_files: tuple[int, int]
    """Limits of open files, soft and hard."""

    def apply(self) -> None:
        """Make them this process's own."""
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, self.open_files)
        threads = os.environ.get(_THREADS)
        for name in set(os.environ) - set(self.environment):
            del os.environ[name]
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        wanted = self.environment.get(_THREADS, "")
        if wanted.isdecimal() and wanted != threads:
            import torch

            torch.set_num_threads(int(wanted))  # it has read the variable already
        into = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for descriptor in (1, 2):
            os.dup2(into, descriptor)
        os.close(into)


@dataclass
class _ForkedChild:
    """In a process just forked: what it has to become."""

    data: int
    descriptors: list[int]


@dataclass
class _Children:
    """The processes that were forked here and run still, by their pidfds."""

    pids: dict[int, int] = field(default_factory=dict)
    exit_pipe: dict[int, int] = field(default_factory=dict)
    """Pipes on which it is said how they ended."""

    def add(self, pidfd: int, pid: int, exit_pipe: int) -> None:
        self.pids[pidfd] = pid
        self.exit_pipe[pidfd] = exit_pipe

    def reap(self, pidfd: int) -> None:
        _, status = os.waitpid(self.pids.pop(pidfd), 0)
        exit_pipe = self.exit_pipe.pop(pidfd)
        with contextlib.suppress(BrokenPipeError):
            os.write(exit_pipe, b"%d" % os.waitstatus_to_exitcode(status))
        os.close(exit_pipe)
        os.close(pidfd)

    def close_in_child(self) -> None:
        """In a child: they are somebody else's."""
        for descriptor in (*self.pids, *self.exit_pipe.values()):
            os.close(descriptor)


def serve(descriptor: int) -> None:
    """Import vLLM and fork what is control for, until the host has gone; in each fork, be that process.

    Parameters
    ----------
    descriptor
        The socket's descriptor.
    """
    host = os.getppid()
    # Ctrl-C goes to all processes of a terminal; this one is ended by its host.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        write_tag = _tag_writer()
        refusal = "its environment cannot be written over" if write_tag is None else _import_all()
        gc.collect()
        gc.freeze()
        said = {"refusal": refusal, "environment": load_time_variables(os.environ)}
        control.send(json.dumps(said).encode())
        if refusal or write_tag is None:
            return
        child = _serve_forks(control, host, write_tag)
    if child is None:
        os._exit(0)
    signal.signal(signal.SIGINT, interrupted)
    sys.exit(_run_child(child))


def _import_all() -> str:
    """Import what an EngineCore needs; why nothing can be forked here, if so."""
    for name in _MODULES:
        importlib.import_module(name)
    from vllm.platforms import current_platform
    from vllm.platforms.interface import in_wsl
    from vllm.utils.platform_utils import cuda_is_initialized, xpu_is_initialized

    worker = _WORKERS.get("cuda" if current_platform.is_cuda_alike() else str(current_platform.device_type))
    if worker is not None:
        importlib.import_module(worker)
    if in_wsl():
        return "vLLM does not fork under WSL"
    if cuda_is_initialized() or xpu_is_initialized():
        return "the import has initialised a device"
    return ""


def _tag_writer() -> Callable[[str], None] | None:
    """Find where the system keeps this process's tag, and give what writes another one there.

    A fork shows the environment that its parent was started with, whatever it sets itself; None where it
    shows something else.
    """
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    place = getenv(TAG.encode())
    own = os.environ[TAG]

    def put(tag: str) -> None:
        if len(tag) != len(own):
            raise ValueError(f"a tag must have {len(own)} characters; {tag!r} has {len(tag)}")
        ctypes.memmove(place, tag.encode(), len(own))

    def shown(tag: str) -> bool:
        block = Path("/proc/self/environ").read_bytes().split(b"\0")
        return f"{TAG}={tag}".encode() in block

    other = own[::-1]
    put(other)
    seen = shown(other)
    put(own)
    return put if seen and shown(own) else None


def _serve_forks(control: socket.socket, host: int, write_tag: Callable[[str], None]) -> _ForkedChild | None:
    """Serve; what comes back is None when the host has gone, and a child in each process that was forked."""
    children = _Children()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while os.getppid() == host:
        for descriptor, _ in poll.poll(_HOST_SECONDS * 1000):
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                children.reap(descriptor)
                continue
            message, given, _, _ = socket.recv_fds(
                control, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            if not message:
                return None
            exit_pipe, data, *rest = given
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                write_tag(json.loads(message)["tag"])
                children.close_in_child()
                os.close(exit_pipe)
                with contextlib.suppress(OSError):
                    Path(f"/proc/self/task/{os.getpid()}/comm").write_text(_ROLE, encoding="utf-8")
                return _ForkedChild(data, rest)
            pidfd = os.pidfd_open(pid)  # not reaped before: the number is its own
            for each in (data, *rest):
                os.close(each)
            children.add(pidfd, pid, exit_pipe)
            poll.register(pidfd, select.POLLIN)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(control, [b"%d" % pid], [pidfd])
    return None


def _run_child(child: _ForkedChild) -> int:
    """Run the process object that comes through the pipe, as a spawned process of multiprocessing does."""
    tracker, *inherited = child.descriptors
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]  # noqa: SLF001 - as its fork server does
    forkserver._forkserver._inherited_fds = inherited  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    sentinel = os.dup(child.data)
    current: Any = process.current_process()
    with os.fdopen(child.data, "rb") as data:
        current._inheriting = True  # noqa: SLF001 - as above
        try:
            pickle.load(data).apply()  # noqa: S301 - its host's
            spawn.prepare(pickle.load(data))  # noqa: S301 - as above
            born = pickle.load(data)  # noqa: S301 - as above
        finally:
            del current._inheriting  # noqa: SLF001 - as above
    code: int = born._bootstrap(sentinel)  # noqa: SLF001 - as above
    return code
