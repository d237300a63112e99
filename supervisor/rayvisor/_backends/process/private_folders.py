"""Folders of this user in the temporary folder, where any user may have taken their names."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from rayvisor._log import get_logger

__all__ = ["private_folder"]

log = get_logger("rayvisor.private_folders")

_NAMES = 100


def private_folder(wanted: Path) -> Path:
    """Return a folder that belongs to this user and that no other user can enter; make it if need be.

    A symbolic link, a file, or a folder of another user is never accepted: the folder gets another name then,
    the same one in each process, and a warning is logged.

    Raises
    ------
    OSError
        All names are taken, or the folder cannot be made.
    """
    for number in range(_NAMES):
        folder = wanted if number == 0 else wanted.with_name(f"{wanted.name}-{number + 1}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if _make_private(folder):
            if number:
                log.warning("folder.taken", folder=str(wanted), instead=str(folder))
            return folder
    raise PermissionError(f"{wanted} belongs to another user, and so do all names that replace it")


def _make_private(folder: Path) -> bool:
    """Return whether a folder is of this user; if so, other users cannot enter it from now on."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False  # a link, a file, or a folder that only another user can enter
    try:
        about = os.fstat(descriptor)
        if about.st_uid != os.geteuid():
            return False
        if stat.S_IMODE(about.st_mode) & 0o077:
            os.fchmod(descriptor, 0o700)
        return True
    finally:
        os.close(descriptor)
