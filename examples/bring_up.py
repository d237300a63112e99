"""Bring-up of several actors at once, through errors that pass: nothing is made twice, nothing is masked.

Some of the actors crash while they come up, and Ray starts them again. Whoever waits is told
``ActorUnavailableError`` meanwhile, which would otherwise end the ``__init__`` that waits, for good.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import ray

import rayvisor as rv


class Engine:
    """Stands for what takes a minute to load; every third one crashes once on the way."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank = rank
        self.crashed = folder / f"{rank}.crashed"

    def ensure_started(self) -> int:
        """Start it, or say that it has started: asked twice, it does nothing twice."""
        if self.rank % 3 == 0 and not self.crashed.exists():
            self.crashed.touch()
            os._exit(1)
        return self.rank


class Rollouts:
    """Needs all engines before it is of any use."""

    def __init__(self, size: int, folder: Path) -> None:
        engine: Any = ray.remote(num_cpus=0, max_restarts=-1)(Engine)
        self.engines = [engine.remote(rank, folder) for rank in range(size)]
        self.up = rv.retry(
            [engine.ensure_started.remote() for engine in self.engines],
            reprobe=lambda rank: self.engines[rank].ensure_started.remote(),
        ).result()

    def ranks(self) -> list[int]:
        """Which engines are up."""
        return self.up


if __name__ == "__main__":
    ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        actor: Any = ray.remote(num_cpus=0)(Rollouts)
        rollouts = actor.remote(3, Path(folder))
        print("up:", ray.get(rollouts.ranks.remote()))
        print("crashed on the way:", len(list(Path(folder).glob("*.crashed"))))
    ray.kill(rollouts)
