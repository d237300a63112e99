"""Finds and claims control sockets.

Every process that can open the socket can stop the tree, so it is created with mode 0600 in a folder that
other users cannot enter. A socket file left behind by a dead process is replaced; one with a listening
process is never touched.
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
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

__all__ = ["claim", "default_folder", "free_path", "is_listening", "live_sockets"]

FOLDER_VARIABLE = "RAYVISOR_CONTROL_DIR"
LONGEST_PATH = 107
"""Maximum length, in bytes, of the path of a Unix socket."""

_NUMBERS = count(1)


def default_folder() -> Path:
    """Return the folder of the sockets of this user's trees.

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


def free_path(*, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges) -> Path:
    """Return a path for the socket of one more tree of this process, named after its pid."""
    folder = default_folder()
    while True:
        number = next(_NUMBERS)
        path = folder / (f"{os.getpid()}.sock" if number == 1 else f"{os.getpid()}-{number}.sock")
        if not is_listening(path, timeouts.probe):
            return path


def live_sockets(
    folder: Path | None = None, *, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges
) -> list[Path]:
    """Return the sockets in a folder that have a listening process, sorted by pid."""
    folder = default_folder() if folder is None else folder
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".sock"]
    except OSError:
        return []
    return sorted((path for path in found if is_listening(path, timeouts.probe)), key=_order)


def _order(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


def is_listening(path: Path, timeout: float = DEFAULT_TIMEOUTS.edges.probe) -> bool:
    """Return whether a process listens at a path, including one that does not answer within ``timeout``."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.settimeout(timeout)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its queue is full: the process exists and is slow
        except OSError:
            return False
    return True


@contextlib.contextmanager
def claim(path: Path, *, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges) -> Iterator[None]:
    """Make sure that a socket can be bound at ``path``, and keep other processes from doing so meanwhile.

    Raises
    ------
    ControlSocketError
        If a living process has the socket, another file is at its path, or others could enter the folder.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ControlSocketError(
            str(path), f"is longer than the {LONGEST_PATH} bytes allowed for the path of a socket"
        )
    try:
        descriptor = _open_folder(path)
    except OSError as error:
        raise ControlSocketError(str(path), f"its folder cannot be used: {error.strerror}") from error
    try:
        _check_folder(path, os.fstat(descriptor))
        _lock(path, descriptor, timeouts.claim)
        _clear(path, timeouts.probe)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _open_folder(path: Path) -> int:
    """Open the folder of a socket, made with its parents if need be, from the root folder downwards.

    Each parent is opened below the one that has been checked, so nobody can exchange one in between. A
    symbolic link is resolved first, and the folders on the resolved path are checked.
    """
    folder = Path(os.path.realpath(path.parent))
    for link in (each for each in path.absolute().parents if each.is_symlink()):
        _check_parent(path, link.parent, link.parent.stat())  # who can exchange the link, can do so later
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        at = Path("/")
        for name in folder.parts[1:]:
            _check_parent(path, at, os.fstat(descriptor))
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=descriptor)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor, at = below, at / name
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_parent(path: Path, parent: Path, about: os.stat_result) -> None:
    if about.st_uid not in {0, os.geteuid()}:
        raise ControlSocketError(
            str(path),
            f"the folder {parent} above it belongs to another user (uid {about.st_uid}), who could replace "
            "what is in it; use another folder",
        )
    if about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX:
        raise ControlSocketError(
            str(path),
            f"other users can write to the folder {parent} above it (mode {stat.S_IMODE(about.st_mode):04o}) "
            "and could replace what is in it; use another folder",
        )


def _check_folder(path: Path, about: os.stat_result) -> None:
    if about.st_uid != os.geteuid():
        raise ControlSocketError(
            str(path),
            f"its folder {path.parent} belongs to another user (uid {about.st_uid}); use another folder",
        )
    if stat.S_IMODE(about.st_mode) & 0o077:
        raise ControlSocketError(
            str(path),
            f"other users can enter its folder {path.parent} (mode {stat.S_IMODE(about.st_mode):04o}) "
            "and could open the socket; use a folder with mode 0700",
        )


def _lock(path: Path, descriptor: int, timeout: float) -> None:
    """Lock the folder for the milliseconds of checking, removing and binding."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                raise ControlSocketError(
                    str(path), f"its folder has been locked by another process for {timeout:g} s"
                ) from None
            time.sleep(0.01)
        else:
            return


def _clear(path: Path, probe: float) -> None:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(about.st_mode):
        raise ControlSocketError(str(path), "exists and is not a socket; remove it or use another path")
    if is_listening(path, probe):
        raise ControlSocketError(str(path), "a running tree listens there; stop it or use another socket")
    path.unlink(missing_ok=True)
