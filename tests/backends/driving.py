"""Helpers that drive an engine in the engine tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from rayvisor._backends.host.engine import Engine
from rayvisor._backends.process import identity
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId, Prompt

__all__ = ["REAL", "Result", "Served", "alive", "order"]

REAL = pytest.param(
    "vllm",
    marks=[
        pytest.mark.engine,
        pytest.mark.timeout(900),
        # Warnings of vLLM and torch are not fixed here. Known: vLLM leaves the ZMQ context of a failed start
        # to the garbage collector, and uses deprecated functions of torch.
        pytest.mark.filterwarnings(
            "default",
            "ignore:Unclosed context:ResourceWarning",
            "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
        ),
    ],
)
"""Parameter of the real engine."""

_numbers = count()


def order(
    prompt: Prompt, delivered: tuple[int, ...] = (), characters: int = 0, **params: Any
) -> GenerateCommand:
    """Make a command with a unique request name; greedy unless ``params`` say otherwise."""
    return GenerateCommand(
        f"request-{next(_numbers)}", 1, prompt, {"temperature": 0.0, **params}, delivered, characters
    )


@dataclass
class Result:
    """The output of one request."""

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
    """One running engine; it is started again after a test has stopped it."""

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
    """Return those of the processes that still run."""
    return [process for process in processes if identity.alive(process)]
