"""The folder that holds the sockets of one engine's processes.

vLLM gives each socket a unique name in the temporary folder, and leaves it there when a process is killed. So
each incarnation has a folder that is removed with it. A later start removes the folder of a killed host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from rayvisor.timeouts import DEFAULT_TIMEOUTS, VllmTimeouts

__all__ = ["SocketFolder"]

_VARIABLE = "VLLM_RPC_BASE_PATH"
_PREFIX = "rayvisor-ipc-"
_MAX_PATH = 107 - len("/01234567-0123-0123-0123-0123456789ab")
"""The system accepts no longer path for a socket; vLLM names its sockets by a UUID."""


class SocketFolder:
    """The socket folder of one engine, from `use` to `remove`. A folder set by the user stays in use.

    Parameters
    ----------
    timeouts
        A folder counts as a killed host's only if nothing in it has been created or removed for
        ``sockets_abandoned`` seconds.
    """

    def __init__(self, *, timeouts: VllmTimeouts = DEFAULT_TIMEOUTS.vllm) -> None:
        self._abandoned = timeouts.sockets_abandoned
        self._path: Path | None = None

    def use(self) -> None:
        """Create the folder, and make vLLM use it in this process and in those that it starts."""
        base = Path(tempfile.gettempdir())
        configured = os.environ.get(_VARIABLE)
        if configured is not None and not Path(configured).name.startswith(_PREFIX):
            return
        _remove_abandoned(base, self._abandoned)
        made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))  # mode 0700
        if len(str(made)) > _MAX_PATH:
            made.rmdir()
            os.environ.pop(_VARIABLE, None)
            return
        self._path = made
        os.environ[_VARIABLE] = str(made)

    def remove(self) -> None:
        """Remove the folder and its contents. No process of the engine may be left."""
        path, self._path = self._path, None
        if path is not None:
            if os.environ.get(_VARIABLE) == str(path):
                del os.environ[_VARIABLE]
            shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(base: Path, age: float) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            host = int(folder.name.removeprefix(_PREFIX).partition("-")[0])
            found = folder.lstat()
            old = time.time() - found.st_mtime > age
            if old and found.st_uid == os.getuid() and not psutil.pid_exists(host):
                shutil.rmtree(folder, ignore_errors=True)
