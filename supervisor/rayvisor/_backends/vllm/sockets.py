"""The folder in which the processes of one engine have their sockets.

vLLM gives each one a name of its own in the temporary folder, and leaves it there when a process is killed.
So each incarnation has a folder, which goes with it. One whose host was killed is removed by a later start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

__all__ = ["SocketFolder"]

_VARIABLE = "VLLM_RPC_BASE_PATH"
_PREFIX = "rayvisor-ipc-"
_MAX_PATH = 107 - len("/01234567-0123-0123-0123-0123456789ab")
"""The system takes no longer path of a socket; vLLM names them by a UUID."""
_ABANDONED_SECONDS = 600.0
"""So long nothing must have come or gone in a folder that is taken for a killed host's."""


class SocketFolder:
    """The folder of one engine, from `use` to `remove`. Where the user has named one, that stays in use."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def use(self) -> None:
        """Have vLLM make its sockets there from now on, in this process and in those that it starts."""
        base = Path(tempfile.gettempdir())
        named = os.environ.get(_VARIABLE)
        if named is not None and not Path(named).name.startswith(_PREFIX):
            return
        _remove_abandoned(base)
        made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))  # for its user only
        if len(str(made)) > _MAX_PATH:
            made.rmdir()
            os.environ.pop(_VARIABLE, None)
            return
        self._path = made
        os.environ[_VARIABLE] = str(made)

    def remove(self) -> None:
        """Remove it with what is in it. No process of the engine must be left."""
        path, self._path = self._path, None
        if path is not None:
            if os.environ.get(_VARIABLE) == str(path):
                del os.environ[_VARIABLE]
            shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            host = int(folder.name.removeprefix(_PREFIX).partition("-")[0])
            found = folder.lstat()
            old = time.time() - found.st_mtime > _ABANDONED_SECONDS
            if old and found.st_uid == os.getuid() and not psutil.pid_exists(host):
                shutil.rmtree(folder, ignore_errors=True)
