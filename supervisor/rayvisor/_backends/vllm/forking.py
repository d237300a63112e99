"""The template: a process that has imported vLLM, serves no requests, and forks an EngineCore on request.

An import of vLLM takes 13 s of a core. The template imports it once, in addition to the host; each EngineCore
of the host is then a fork of the template. The template has no Python threads, has initialised no device, and
exits with its host.

The host controls it through a socket. Each message requests one process, and carries the descriptors that the
process inherits. The template replies with the pid and a pidfd, and later writes the exit code of the process
to a pipe. ``template.py`` is the host's side.
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
"""The kernel's limit for one message."""

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
    """State of the host that a spawned process would inherit, and a fork of the template does not."""

    environment: Mapping[str, str]
    log_file: str
    open_files: tuple[int, int]
    """Soft and hard limit of open files."""

    def apply(self) -> None:
        """Apply it to this process."""
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

            torch.set_num_threads(int(wanted))  # torch has already read the variable
        output = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)


@dataclass
class _ForkedChild:
    """The descriptors of a process that has just been forked."""

    data: int
    """Pipe from which it reads its state and its process object."""
    descriptors: list[int]


@dataclass
class _Children:
    """The running processes that this one has forked, by their pidfds."""

    pids: dict[int, int] = field(default_factory=dict)
    exit_pipes: dict[int, int] = field(default_factory=dict)
    """Pipes to which their exit codes are written."""

    def add(self, pidfd: int, pid: int, exit_pipe: int) -> None:
        self.pids[pidfd] = pid
        self.exit_pipes[pidfd] = exit_pipe

    def reap(self, pidfd: int) -> None:
        _, status = os.waitpid(self.pids.pop(pidfd), 0)
        exit_pipe = self.exit_pipes.pop(pidfd)
        with contextlib.suppress(BrokenPipeError):
            os.write(exit_pipe, b"%d" % os.waitstatus_to_exitcode(status))
        os.close(exit_pipe)
        os.close(pidfd)

    def close_in_child(self) -> None:
        """Close the descriptors; called in a forked process, where they belong to the template."""
        for descriptor in (*self.pids, *self.exit_pipes.values()):
            os.close(descriptor)


def serve(descriptor: int, host_check: float) -> None:
    """Import vLLM, and fork processes on request until the host has gone. A fork runs as its process.

    Parameters
    ----------
    descriptor
        Descriptor of the control socket.
    host_check
        Seconds between two checks that the host is alive. The socket alone does not show it: a process that
        the host has forked may keep its other end open.
    """
    host = os.getppid()
    # Ctrl-C reaches all processes of a terminal; this one is ended by its host.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        write_tag = _tag_writer()
        refusal = "its environment block cannot be overwritten" if write_tag is None else _import_all()
        gc.collect()
        gc.freeze()
        greeting = {"refusal": refusal, "environment": load_time_variables(os.environ)}
        control.send(json.dumps(greeting).encode())
        if refusal or write_tag is None:
            return
        child = _serve_forks(control, host, write_tag, host_check)
    if child is None:
        os._exit(0)
    signal.signal(signal.SIGINT, interrupted)
    sys.exit(_run_child(child))


def _import_all() -> str:
    """Import the modules of an EngineCore. Return why this process must not fork, or an empty string."""
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
    """Return a function that overwrites this process's tag in its environment block; None if that fails.

    The system shows the environment block that a process was started with, whatever the process sets later.
    A fork shares the block of its parent, so its tag has to be written in place.
    """
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    address = getenv(TAG.encode())
    own = os.environ[TAG]

    def put(tag: str) -> None:
        if len(tag) != len(own):
            raise ValueError(f"a tag must have {len(own)} characters; {tag!r} has {len(tag)}")
        ctypes.memmove(address, tag.encode(), len(own))

    def shown(tag: str) -> bool:
        block = Path("/proc/self/environ").read_bytes().split(b"\0")
        return f"{TAG}={tag}".encode() in block

    other = own[::-1]
    put(other)
    seen = shown(other)
    put(own)
    return put if seen and shown(own) else None


def _serve_forks(
    control: socket.socket, host: int, write_tag: Callable[[str], None], host_check: float
) -> _ForkedChild | None:
    """Fork processes on request. Return None once the host has gone, and the child in each forked process."""
    children = _Children()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while os.getppid() == host:
        for descriptor, _ in poll.poll(host_check * 1000):
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                children.reap(descriptor)
                continue
            message, descriptors, _, _ = socket.recv_fds(
                control, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            if not message:
                return None
            exit_pipe, data, *rest = descriptors
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
            pidfd = os.pidfd_open(pid)  # unreaped, so the pid is still its own
            for each in (data, *rest):
                os.close(each)
            children.add(pidfd, pid, exit_pipe)
            poll.register(pidfd, select.POLLIN)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(control, [b"%d" % pid], [pidfd])
    return None


def _run_child(child: _ForkedChild) -> int:
    """Run the process object that arrives through the pipe, as multiprocessing does in a spawned process."""
    tracker, *inherited = child.descriptors
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]  # noqa: SLF001 - multiprocessing's fork server sets it
    forkserver._forkserver._inherited_fds = inherited  # type: ignore[attr-defined]  # noqa: SLF001 - multiprocessing's fork server sets it
    sentinel = os.dup(child.data)
    current: Any = process.current_process()
    with os.fdopen(child.data, "rb") as data:
        current._inheriting = True  # noqa: SLF001 - multiprocessing.spawn sets it
        try:
            pickle.load(data).apply()  # noqa: S301 - written by its own host
            spawn.prepare(pickle.load(data))  # noqa: S301 - written by its own host
            process_obj = pickle.load(data)  # noqa: S301 - written by its own host
        finally:
            del current._inheriting  # noqa: SLF001 - multiprocessing.spawn removes it
    code: int = process_obj._bootstrap(sentinel)  # noqa: SLF001 - multiprocessing.spawn calls it
    return code
