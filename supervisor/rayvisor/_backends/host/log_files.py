"""The log files of the engines of a host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from itertools import count
from pathlib import Path

import psutil

from rayvisor._backends.process.private_folders import private_folder
from rayvisor.timeouts import DEFAULT_TIMEOUTS, HostTimeouts

__all__ = ["LogFiles", "temporary_log"]

_KEPT = 3
_KEPT_IN_ALL = 1000
"""The most logs of hosts that have ended: every host scans them when it starts its first engine."""
_NAME_BYTES = 180
"""The longest name of a child in a log's name, which may have 255 bytes."""
_DIGEST = 16
_OURS = re.compile(r"engine-.*-(?P<pid>\d+)-\d+(\.\d+)?\.log")


def temporary_log(engine: str) -> str:
    """Make an empty log in the temporary folder for an engine of this kind, and return its path."""
    descriptor, name = tempfile.mkstemp(prefix=f"rayvisor-{engine}-", suffix=".log")
    os.close(descriptor)
    return name


def _file_name(child: str) -> str:
    """Return the part of a log's name that identifies the child; a long one ends with a hash."""
    name = re.sub(r"[^\w.-]+", ".", child)
    encoded = name.encode()
    if len(encoded) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(child.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{encoded[: _NAME_BYTES - _DIGEST - 1].decode(errors='ignore')}.{digest}"


class LogFiles:
    """Creates a log for each incarnation of a child, and deletes old ones.

    A child keeps its last three. The thousand newest logs of hosts that have ended are kept for a week, by
    default.

    Parameters
    ----------
    child
        Path of the child.
    folder
        Their folder; empty: ``$RAYVISOR_LOG_DIR``, or a folder in the temporary one.
    timeouts
        How long the logs of hosts that have ended are kept: by default a week.
    """

    def __init__(
        self, child: str, folder: str = "", *, timeouts: HostTimeouts = DEFAULT_TIMEOUTS.host
    ) -> None:
        self._retention = timeouts.log_retention
        self._name = _file_name(child)
        self._named = folder or os.environ.get("RAYVISOR_LOG_DIR", "")
        self._folder = Path(self._named or Path(tempfile.gettempdir()) / f"rayvisor-{os.getuid()}")
        self._paths: list[Path] = []

    def next(self, incarnation: int) -> str:
        """Create the log of an incarnation and return its path."""
        if self._named:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._named or self._folder.stat().st_uid != os.geteuid():
            self._folder = private_folder(self._folder)
        if not self._paths:
            self._delete_old()
        path = self._folder / f"engine-{self._name}-{os.getpid()}-{incarnation}.log"
        # A file of that name may belong to another tree in this process, or to an earlier process with its
        # pid: failures there must not be taken for failures here.
        numbers = count(2)
        # A link is not followed: it counts as a file of that name.
        while not _created(path):
            path = path.with_name(f"engine-{self._name}-{os.getpid()}-{incarnation}.{next(numbers)}.log")
        self._paths.append(path)
        for old in self._paths[:-_KEPT]:
            old.unlink(missing_ok=True)
        del self._paths[:-_KEPT]
        return str(path)

    def _delete_old(self) -> None:
        """Delete old logs of hosts that have ended and cannot do it themselves."""
        late = time.time() - self._retention
        left: list[tuple[float, int, str]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                named = _OURS.fullmatch(entry.name)
                with contextlib.suppress(FileNotFoundError):  # another host does the same
                    if named:
                        left.append(
                            (entry.stat(follow_symlinks=False).st_mtime, int(named["pid"]), entry.path)
                        )
        left.sort(reverse=True)
        for rank, (written, pid, path) in enumerate(left):
            if (written < late or rank >= _KEPT_IN_ALL) and not psutil.pid_exists(pid):
                Path(path).unlink(missing_ok=True)


def _created(path: Path) -> bool:
    """Create an empty log; return False if its name is taken."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        return False
    return True
