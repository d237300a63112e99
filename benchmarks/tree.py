"""A supervised pool to measure, with its records, processes and streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

import rayvisor as rv
from rayvisor import records as r

if TYPE_CHECKING:
    from rayvisor._runtime.pool.pool import EnginePool

__all__ = ["PROMPTS", "Tree", "engine_arguments", "pool_tree", "stream_params"]

RecordT = TypeVar("RecordT", bound=r.Record)

POOL = "llm"
WAIT_SECONDS = 300.0
"""Timeout of all waits, generous enough for a busy machine."""

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
PROMPTS = tuple(f"{word}, said the " for word in _WORDS)

_MAKE_MODEL = (
    "import sys; from pathlib import Path; from tests.backends.tiny_model import make_tiny_model; "
    "print(make_tiny_model(Path(sys.argv[1])))"
)


def engine_arguments(engine: str, *, model: str = "", pace: float = 200.0) -> dict[str, Any]:
    """Return the arguments of a small engine; without a model, the tests' tiny one is made.

    Parameters
    ----------
    engine
        ``"vllm"`` or ``"sim"``.
    model
        Path or name of a model for vLLM.
    pace
        Tokens per second and request of the simulated engine; 0 for no limit.
    """
    if engine == "sim":
        return {"max_model_len": 4096, "max_num_seqs": 16, "tokens_per_second": pace}
    return {
        "model": model or _tiny_model(),
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 1 << 28,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "disable_log_stats": True,
    }


def _tiny_model() -> str:
    """Make the tests' tiny model in another process, since this one never imports torch."""
    folder = Path(tempfile.gettempdir()) / f"rayvisor-benchmarks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    root = Path(__file__).resolve().parent.parent
    made = subprocess.run(
        [sys.executable, "-c", _MAKE_MODEL, str(folder)],
        cwd=root, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return made.stdout.splitlines()[-1]


def stream_params(tokens: int) -> dict[str, Any]:
    """Return greedy sampling parameters with a fixed number of tokens."""
    return {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}


class Tree:
    """A running supervisor with one pool, ``llm``, and all its records so far."""

    def __init__(self, supervisor: rv.Supervisor) -> None:
        self.supervisor = supervisor
        self.records: list[r.Record] = []
        self._news = anyio.Event()

    @property
    def pool(self) -> EnginePool:
        """The pool."""
        pool: EnginePool = self.supervisor[POOL]
        return pool

    async def listen(self, records: AsyncIterator[r.Record]) -> None:
        """Collect records until the tree has ended."""
        async for record in records:
            self.records.append(record)
            self._news.set()
            self._news = anyio.Event()

    async def until(
        self, kind: type[RecordT], where: Callable[[RecordT], bool], since: float = 0.0
    ) -> RecordT:
        """Wait for the first matching record not older than ``since`` on the monotonic clock."""
        seen = 0
        with anyio.fail_after(WAIT_SECONDS):
            while True:
                for record in self.records[seen:]:
                    if isinstance(record, kind) and record.at >= since and where(record):
                        return record
                seen = len(self.records)
                await self._news.wait()

    async def decided(self, child: str, since: float) -> float:
        """Wait for a decision about a child; return its time."""
        decision = await self.until(r.DecisionMade, lambda record: record.child == child, since)
        return decision.at

    async def reached(self, child: str, leaf: str, since: float) -> float:
        """Wait until a child reaches a state, for example ``"ALIVE.SERVING"``; return the time."""

        def has(record: r.StateChanged) -> bool:
            return record.child == child and record.after == leaf

        return (await self.until(r.StateChanged, has, since)).at

    def kill(self, child: str, victim: str) -> float:
        """Send SIGKILL to ``host`` or a process with this title; return the time on the monotonic clock."""
        pid = next(
            process.pid
            for role, process in self.supervisor.processes(child)
            if victim == role or victim in process.name
        )
        now = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return now

    def cold_start(self, child: str) -> float:
        """Return the start time, in seconds, that the engine reports."""
        info = self.supervisor.engine_info(child)
        if info is None:
            raise RuntimeError(f"no engine is up at {child}")
        return info.startup_seconds


@asynccontextmanager
async def pool_tree(
    engine: str, arguments: Mapping[str, Any], *, size: int = 1, standby: int = 0
) -> AsyncIterator[Tree]:
    """Run a pool whose engines are always restarted immediately."""
    spec = rv.SupervisorSpec(
        children=[
            rv.engine_pool(
                POOL,
                engine=engine,
                engine_args=arguments,
                size=size,
                standby=standby,
                num_cpus=1,
                intensity=1000,
                period=1e6,
                backoff=rv.Backoff(initial=0.0, maximum=0.0),
                crash_loop_limit=None,
                request_timeout=WAIT_SECONDS,
                max_attempts=1000,
            )
        ]
    )
    supervisor = rv.Supervisor(spec, seed=0, ray_options={"num_cpus": size + standby + 4})
    tree = Tree(supervisor)
    async with anyio.create_task_group() as listening:
        listening.start_soon(tree.listen, supervisor.watch())
        async with supervisor:
            yield tree
