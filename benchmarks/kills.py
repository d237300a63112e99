"""A kill in the middle of streams, and the time until they continue."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio

from benchmarks.tree import PROMPTS, Tree, stream_params

__all__ = ["Kill", "kill_mid_stream"]

TOKENS = 300
ENOUGH = 10
"""Tokens that each stream has received before its engine is killed."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, with the seconds until the first and the last of its streams have a new token."""

    first: float
    last: float
    killed: float
    """Time of the kill on the monotonic clock."""
    decided: float
    """Time of the supervisor's decision on the same clock."""


async def kill_mid_stream(tree: Tree, child: str, streams: int) -> Kill:
    """Kill the EngineCore of a child in the middle of streams; wait until all of its streams continue."""
    ready: list[str] = []
    enough = anyio.Event()
    killed = 0.0
    continued: list[float] = []

    async def read(prompt: str) -> None:
        async with tree.pool.generate(prompt, stream_params(TOKENS)) as stream:
            got, engine = 0, ("", 0)
            async for chunk in stream:
                now = time.monotonic()
                origin = (chunk.child, chunk.incarnation)
                if not got:
                    engine = origin
                elif origin != engine and chunk.token_ids:
                    continued.append(now - killed)
                    return
                elif killed and engine[0] != child:
                    return  # on another engine, not affected
                if got < ENOUGH <= got + len(chunk.token_ids):
                    ready.append(chunk.child)
                    if len(ready) == streams:
                        enough.set()
                got += len(chunk.token_ids)

    async with anyio.create_task_group() as readers:
        for number in range(streams):
            readers.start_soon(read, f"{PROMPTS[number % len(PROMPTS)]}{number}")
        with anyio.fail_after(60):
            await enough.wait()
        killed = tree.kill(child, "EngineCore")
        decided = await tree.decided(child, killed)
    if not continued:
        raise RuntimeError("no stream was on the killed engine")
    return Kill(min(continued), max(continued), killed, decided)
