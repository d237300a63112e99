"""Last words: what a process that ends itself leaves behind, as plain data, and where it is kept.

In a Ray worker that is the cluster's key-value store, which every process of the cluster reads; elsewhere a
folder of files on this machine, one for each parent process: whoever starts the next one is its reader.
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


shown_as("rayvisor", LastWords)
