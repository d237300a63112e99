"""A folder that keeps the last words of processes until a sibling reads them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from rayvisor._backends.process.identity import identify
from rayvisor._backends.process.private_folders import private_folder
from rayvisor._core.protocol.last_words import LastWords
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["Folder"]


class Folder:
    """A folder for each parent process, with one file for each end of one of its children."""

    def put(self, words: LastWords) -> None:
        """Keep the last words of this process, and remove the folders of parents that are gone."""
        folder = self._of(os.getppid())
        owner = folder.parent
        for other in owner.iterdir():
            pid = other.name.partition("-")[0]
            if pid.isdigit() and other.name != _folder_name(int(pid), identify(int(pid))):
                shutil.rmtree(other, ignore_errors=True)  # the process that would read it is gone
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{time.time_ns()}-{words.pid}.json"
        partial = path.with_suffix(".partial")
        partial.write_bytes(words.dump())
        partial.rename(path)  # a reader finds all of it, or nothing

    def read(self, name: str) -> list[LastWords]:
        """Return what siblings and children of this process left under a name; all of it for an empty one."""
        folders = [self._of(pid) for pid in (os.getppid(), os.getpid())]
        paths = sorted(
            (path for folder in folders for path in folder.glob("*.json")), key=lambda path: path.name
        )
        found = [LastWords.load(path.read_bytes()) for path in paths]
        return [words for words in found if name in {"", words.name}]

    def where(self) -> tuple[str, str]:
        """Return empty texts: outside of Ray there is no node and no actor."""
        return "", ""

    @staticmethod
    def _of(pid: int) -> Path:
        root = private_folder(Path(tempfile.gettempdir()) / f"rayvisor-last-words-{os.getuid()}")
        return root / _folder_name(pid, identify(pid))


def _folder_name(pid: int, process: ProcessId | None) -> str:
    # With the whole identity: a pid is used again, and the folder may survive a reboot.
    return f"{pid}-0-" if process is None else f"{pid}-{process.start_ticks}-{process.boot_id}"
