"""What the engine tests drive an engine with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psutil
import pytest

from rayvisor._backends.host.engine import Engine
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId, Prompt

__all__ = ["REAL", "Result", "Served", "alive", "order"]

REAL = pytest.param(
    "vllm",
    marks=[
        pytest.mark.engine,
        pytest.mark.timeout(900),
        # What vLLM and torch warn of is not ours to mend. Known: vLLM leaves the ZMQ context of a start that
        # failed to the garbage collector, and uses of torch what torch gives up.
        pytest.mark.filterwarnings(
            "default",
            "ignore:Unclosed context:ResourceWarning",
            "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
        ),
    ],
)
"""The real kind of engine."""

_numbers = count()


def order(
    prompt: Prompt, delivered: tuple[int, ...] = (), characters: int = 0, **params: Any
) -> GenerateCommand:
    """Make an order with a name of its own; greedy unless told otherwise."""
    return GenerateCommand(
        f"request-{next(_numbers)}", 1, prompt, {"temperature": 0.0, **params}, delivered, characters
    )


@dataclass
class Result:
    """What came of one order."""

    chunks: list[Chunk] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish(self) -> str | None:
        return self.chunks[-1].finish_reason if self.chunks else None

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.chunks[0].prompt_token_ids or ()


class Served:
    """One engine that serves, started again when it has been ended."""

    def __init__(self, kind: str, make: Callable[[], Engine]) -> None:
        self.kind = kind
        self._make = make
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.phases: list[str] = []

    async def begin(self) -> None:
        if self.engine is not None:
            return
        self.phases.clear()
        engine = self._make()
        self.info = await engine.start(lambda phase, _: self.phases.append(phase))
        self.engine = engine

    async def end(self, grace: float = 0.0) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.stop(grace)

    @property
    def live(self) -> Engine:
        assert self.engine is not None
        return self.engine

    def process(self, name: str) -> ProcessId:
        return next(process for process in self.live.processes() if name in process.name)

    async def run(self, given: GenerateCommand, into: Result | None = None) -> Result:
        result = into or Result()
        async with asyncio.timeout(60):
            async for chunk in self.live.generate(given):
                result.chunks.append(chunk)
        return result


def alive(processes: tuple[ProcessId, ...]) -> list[ProcessId]:
    """Those of some processes that run still."""
    found = []
    for process in processes:
        try:
            now = psutil.Process(process.pid)
            if abs(now.create_time() - process.start_time) < 1 and now.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
