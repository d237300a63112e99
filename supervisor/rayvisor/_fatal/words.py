"""Last words: what a process that ends itself leaves behind, as plain data, and where it is kept.

In a Ray worker that is the cluster's key-value store, which every process of the cluster reads; elsewhere a
folder of files on this machine, one for each parent process: whoever starts the next one is its reader.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rayvisor._process.reaper import is_alive, read_stat
from rayvisor.faults import Cause

__all__ = ["Folder", "LastWords", "Store", "store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """What a process said before it ended itself.

    Attributes
    ----------
    name
        Of what was guarded, for example ``"Generate"``.
    at
        When, seconds since the epoch.
    pid
        Of the process that ended.
    causes
        The errors, outermost first; the last one is the root cause.
    traceback
        Where they were raised.
    exit_code
        What it ended with.
    actor_id, node_id
        Ray's ids of the actor and its node; empty outside of Ray.
    """

    name: str
    at: float
    pid: int
    causes: tuple[Cause, ...]
    traceback: str = ""
    exit_code: int = 1
    actor_id: str = ""
    node_id: str = ""

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> LastWords:
        """From JSON."""
        fields: dict[str, Any] = json.loads(text)
        causes = tuple(Cause(**cause) for cause in fields.pop("causes"))
        return cls(**fields, causes=causes)


class Store(Protocol):
    """Where last words are kept."""

    def put(self, words: LastWords) -> None:
        """Keep them."""

    def read(self, name: str) -> list[LastWords]:
        """All that were kept under a name, oldest first; of all names if it is empty."""

    def where(self) -> tuple[str, str]:
        """Ids of the actor and the node that this process is."""


class Folder:
    """A folder of files for each parent process, one for each end of a child of its."""

    def put(self, words: LastWords) -> None:
        """Keep them."""
        folder = self._of(os.getppid())
        owner = folder.parent
        owner.mkdir(mode=0o700, exist_ok=True)
        if owner.stat().st_uid != os.getuid():
            raise PermissionError(f"{owner} is another user's: last words are not left there")
        for other in owner.iterdir():
            pid, _, ticks = other.name.partition("-")
            if pid.isdigit() and ticks.isdigit() and not is_alive(int(pid), int(ticks)):
                shutil.rmtree(other, ignore_errors=True)  # its reader is gone
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{time.time_ns()}-{words.pid}.json"
        partial = path.with_suffix(".partial")
        partial.write_bytes(words.dump())
        partial.rename(path)  # a reader finds all of it, or nothing

    def read(self, name: str) -> list[LastWords]:
        """All that siblings of this process, and its children, kept under a name."""
        folders = [self._of(pid) for pid in (os.getppid(), os.getpid())]
        paths = sorted(
            (path for folder in folders for path in folder.glob("*.json")), key=lambda path: path.name
        )
        found = [LastWords.load(path.read_bytes()) for path in paths]
        return [words for words in found if name in {"", words.name}]

    def where(self) -> tuple[str, str]:
        """Nothing is known outside of Ray."""
        return "", ""

    @staticmethod
    def _of(pid: int) -> Path:
        # With the start time: a pid is given away again.
        stat = read_stat(pid)
        owner = Path(tempfile.gettempdir()) / f"rayvisor-last-words-{os.getuid()}"
        return owner / f"{pid}-{stat.ticks if stat is not None else 0}"


def store() -> Store:
    """The store of this process: the cluster's if it is part of one."""
    if "ray" in sys.modules:
        from rayvisor._ray.words import connected

        found = connected()
        if found is not None:
            return found
    return Folder()
