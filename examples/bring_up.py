"""Concurrent start of several actors through transient errors, without duplicate starts or hidden errors.

Some of the actors crash while they start, and Ray restarts them. Meanwhile a caller gets
``ActorUnavailableError``, which without the retry would permanently fail the waiting ``__init__``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import ray

import rayvisor as rv


class Engine:
    """Simulates a slow start; every third engine crashes once while it starts."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank = rank
        self.crashed = folder / f"{rank}.crashed"

    def ensure_started(self) -> int:
        """Start the engine unless it has started; idempotent."""
        if self.rank % 3 == 0 and not self.crashed.exists():
            self.crashed.touch()
            os._exit(1)
        return self.rank


class Rollouts:
    """An actor that needs all engines before it can work."""

    def __init__(self, size: int, folder: Path) -> None:
        engine: Any = ray.remote(num_cpus=0, max_restarts=-1)(Engine)
        self.engines = [engine.remote(rank, folder) for rank in range(size)]
        self.up = rv.retry(
            [engine.ensure_started.remote() for engine in self.engines],
            reprobe=lambda rank: self.engines[rank].ensure_started.remote(),
        ).result()

    def ranks(self) -> list[int]:
        """Return the ranks of the started engines."""
        return self.up


if __name__ == "__main__":
    ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        actor: Any = ray.remote(num_cpus=0)(Rollouts)
        rollouts = actor.remote(3, Path(folder))
        print("up:", ray.get(rollouts.ranks.remote()))
        print("crashed during start:", len(list(Path(folder).glob("*.crashed"))))
    ray.kill(rollouts)
