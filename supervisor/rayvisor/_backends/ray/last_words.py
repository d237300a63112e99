"""Last words in the cluster's key-value store, which every process connected to the cluster can read.

They are kept by job for as long as the cluster lives: one job does not see the crashes of another.
"""

from __future__ import annotations

import time
from dataclasses import replace

from rayvisor._core.protocol.last_words import LastWords
from rayvisor.faults import Termination

__all__ = ["ClusterStore", "connected", "explain"]

_NAMESPACE = b"rayvisor"
_OF_ACTOR = "last_words_of/"


class ClusterStore:
    """Keeps the last words of one job's processes."""

    def __init__(self, job: str, actor: str, node: str) -> None:
        self._prefix = f"last_words/{job}/"
        self._where = (actor, node)

    def put(self, words: LastWords) -> None:
        """Keep the last words of this process."""
        from ray.experimental.internal_kv import _internal_kv_put

        mine = f"{time.time_ns()}-{words.pid}"
        keys = [f"{self._prefix}{words.name}/{mine}"]
        keys += [f"{_OF_ACTOR}{words.actor_id}/{mine}"] if words.actor_id else []
        for key in keys:
            _internal_kv_put(key.encode(), words.dump(), namespace=_NAMESPACE)

    def read(self, name: str) -> list[LastWords]:
        """Return the last words under a name; all of them for an empty one."""
        return _below(f"{self._prefix}{name}/" if name else self._prefix)

    def where(self) -> tuple[str, str]:
        """Return the ids of this process's actor and node."""
        return self._where


def _below(prefix: str) -> list[LastWords]:
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    keys = _internal_kv_list(prefix.encode(), namespace=_NAMESPACE)
    texts = [_internal_kv_get(key, namespace=_NAMESPACE) for key in keys]
    return sorted((LastWords.load(text) for text in texts if text), key=lambda words: words.at)


def explain(end: Termination, actor_id: str, since: float) -> Termination:
    """Add an actor's last words, if there are any, to Ray's report of its end. This calls Ray, and blocks.

    Parameters
    ----------
    end
        Ray's report.
    actor_id
        Id of the actor, which all its incarnations share.
    since
        Start of this incarnation, in seconds since the epoch.
    """
    said = [words for words in _below(f"{_OF_ACTOR}{actor_id}/") if words.at >= since]
    if not said:
        return end
    words = said[-1]
    causes = end.causes + tuple(cause for cause in words.causes if cause not in end.causes)
    return replace(end, causes=causes, traceback=words.traceback, exit_code=words.exit_code)


def connected() -> ClusterStore | None:
    """Return the store of the cluster that this process is connected to; None if there is none."""
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return ClusterStore(context.get_job_id(), context.get_actor_id() or "", context.get_node_id())
