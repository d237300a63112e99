"""Last words in the cluster's key-value store: every process that is connected to the cluster reads them.

They are kept for as long as the cluster lives, by job, so that one job's crashes are not another's.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from rayvisor._core.protocol.last_words import LastWords
from rayvisor.faults import Termination

__all__ = ["ClusterStore", "connected", "explain"]

_NAMESPACE = b"rayvisor"
_OF_ACTOR = "last_words_of/"


class ClusterStore:
    """Keeps last words of one job."""

    def __init__(self, job: str, actor: str, node: str) -> None:
        self._prefix = f"last_words/{job}/"
        self._where = (actor, node)

    def put(self, words: LastWords) -> None:
        """Keep them."""
        mine = f"{time.time_ns()}-{words.pid}"
        keys = [f"{self._prefix}{words.name}/{mine}"]
        keys += [f"{_OF_ACTOR}{words.actor_id}/{mine}"] if words.actor_id else []
        for key in keys:
            _kv()._internal_kv_put(key.encode(), words.dump(), namespace=_NAMESPACE)  # noqa: SLF001 - its only name

    def read(self, name: str) -> list[LastWords]:
        """All that were kept under a name."""
        return _below(f"{self._prefix}{name}/" if name else self._prefix)

    def where(self) -> tuple[str, str]:
        """Ids of the actor and the node."""
        return self._where


def _below(prefix: str) -> list[LastWords]:
    kv = _kv()
    keys = kv._internal_kv_list(prefix.encode(), namespace=_NAMESPACE)  # noqa: SLF001 - as above
    texts = [kv._internal_kv_get(key, namespace=_NAMESPACE) for key in keys]  # noqa: SLF001 - as above
    return sorted((LastWords.load(text) for text in texts if text), key=lambda words: words.at)


def explain(end: Termination, actor_id: str, since: float) -> Termination:
    """Add to Ray's account of an actor's end what the actor said itself, if it did. It asks Ray, and blocks.

    Parameters
    ----------
    end
        Ray's account.
    actor_id
        Of the actor; its lives share it.
    since
        When this life of it began, seconds since the epoch.
    """
    said = [words for words in _below(f"{_OF_ACTOR}{actor_id}/") if words.at >= since]
    if not said:
        return end
    words = said[-1]
    causes = end.causes + tuple(cause for cause in words.causes if cause not in end.causes)
    return replace(end, causes=causes, traceback=words.traceback, exit_code=words.exit_code)


def _kv() -> Any:
    import ray.experimental.internal_kv

    return ray.experimental.internal_kv


def connected() -> ClusterStore | None:
    """The store of the cluster that this process is part of; None if it is part of none."""
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return ClusterStore(context.get_job_id(), context.get_actor_id() or "", context.get_node_id())
