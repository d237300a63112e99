"""Last words: the record that a process leaves when it ends itself, and the stores that keep it.

In a Ray worker the store is the cluster's key-value store, which every process of the cluster reads.
Elsewhere it is a folder on this machine, one for each parent process, which reads it before it starts the
next process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rayvisor._public import shown_as
from rayvisor.faults import Cause

__all__ = ["LastWords", "Store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """The record that a process left before it ended itself.

    Attributes
    ----------
    name
        Name of the guarded part, for example ``"Generate"``.
    at
        When, in seconds since the epoch.
    pid
        Of the process that ended.
    causes
        The errors, outermost first; the last one is the root cause.
    traceback
        Where they were raised.
    exit_code
        The exit code of the process.
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
        """Return the record as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> LastWords:
        """Read a record from JSON."""
        fields: dict[str, Any] = json.loads(text)
        causes = tuple(Cause(**cause) for cause in fields.pop("causes"))
        return cls(**fields, causes=causes)


class Store(Protocol):
    """Keeps last words."""

    def put(self, words: LastWords) -> None:
        """Keep a record."""

    def read(self, name: str) -> list[LastWords]:
        """Return all records kept under a name, oldest first; of all names if it is empty."""

    def where(self) -> tuple[str, str]:
        """Return the ids of the actor and the node that this process is."""


shown_as("rayvisor", LastWords)
