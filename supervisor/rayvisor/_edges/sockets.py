"""Where control sockets are, which are alive, and how one is opened.

Who may open the socket may end the tree, so it is made with mode 0600 in a folder that nobody else can
enter. A socket file that its process has left behind is replaced; one that is answered is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from rayvisor.errors import ControlSocketError

__all__ = ["claim", "default_folder", "free_path", "is_listening", "live_sockets"]

FOLDER_VARIABLE = "RAYVISOR_CONTROL_DIR"
LONGEST_PATH = 107
"""Bytes that the kernel takes as the name of a Unix socket."""
CLAIM_SECONDS = 5.0
PROBE_SECONDS = 1.0

_NUMBERS = count(1)


def default_folder() -> Path:
    """Folder of the sockets of this user's trees.

    ``$RAYVISOR_CONTROL_DIR``, or ``rayvisor`` in ``$XDG_RUNTIME_DIR``, or ``rayvisor-UID/control`` in the
    temporary folder.
    """
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "rayvisor"
    return Path(tempfile.gettempdir()) / f"rayvisor-{os.getuid()}" / "control"


def free_path() -> Path:
    """A path for the socket of one more tree of this process, named after its pid."""
    folder = default_folder()
    while True:
        number = next(_NUMBERS)
        path = folder / (f"{os.getpid()}.sock" if number == 1 else f"{os.getpid()}-{number}.sock")
        if not is_listening(path):
            return path


def live_sockets(folder: Path | None = None) -> list[Path]:
    """The sockets in a folder that somebody answers, by pid."""
    folder = default_folder() if folder is None else folder
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".sock"]
    except OSError:
        return []
    return sorted((path for path in found if is_listening(path)), key=_order)


def _order(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


def is_listening(path: Path) -> bool:
    """Whether a process listens there; one that is stopped, or busy, counts as well."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its queue is full: somebody is there, and slow
        except OSError:
            return False
    return True


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """Make sure that a socket can be bound at ``path``, and keep others from doing so meanwhile.

    Raises
    ------
    ControlSocketError
        A living process has the socket; something else is in its place; or others could enter the folder.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ControlSocketError(
            str(path), f"is longer than the {LONGEST_PATH} bytes that a socket's path may have"
        )
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ControlSocketError(str(path), f"its folder cannot be used: {error.strerror}") from error
    try:
        _check_folder(path, os.fstat(descriptor))
        _lock(path, descriptor)
        _clear(path)
        yield
    finally:
        os.close(descriptor)  # gives the lock back


def _check_folder(path: Path, about: os.stat_result) -> None:
    if about.st_uid != os.geteuid():
        raise ControlSocketError(
            str(path), f"its folder {path.parent} belongs to another user (uid {about.st_uid}); name another"
        )
    if stat.S_IMODE(about.st_mode) & 0o077:
        raise ControlSocketError(
            str(path),
            f"others can enter its folder {path.parent} (mode {stat.S_IMODE(about.st_mode):04o}), "
            "and nobody else may open the socket; use a folder with mode 0700",
        )


def _lock(path: Path, descriptor: int) -> None:
    """Keep the folder to ourselves while we look, remove and bind: a matter of milliseconds."""
    late = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= late:
                raise ControlSocketError(
                    str(path), f"its folder is locked by another process for {CLAIM_SECONDS:g} s"
                ) from None
            time.sleep(0.01)
        else:
            return


def _clear(path: Path) -> None:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(about.st_mode):
        raise ControlSocketError(str(path), "is there already and is no socket; remove it, or name another")
    if is_listening(path):
        raise ControlSocketError(
            str(path), "a living tree answers there; stop that one, or name another socket"
        )
    path.unlink(missing_ok=True)
