"""A kill in the middle of streams, and how long it is until they go on."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio

from benchmarks.tree import PROMPTS, Tree, stream_params

__all__ = ["Kill", "kill_mid_stream"]

TOKENS = 300
ENOUGH = 10
"""So many tokens a stream has got before its engine is killed."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: seconds from it to the first and the last of its streams' new tokens."""

    first: float
    last: float
    killed: float
    """When, on the monotonic clock."""
    decided: float
    """When the supervisor had decided about it, on the same clock."""


async def kill_mid_stream(tree: Tree, child: str, streams: int) -> Kill:
    """Kill the EngineCore of a child in the middle of streams, and wait until all of its streams go on."""
    ready: list[str] = []
    enough = anyio.Event()
    killed = 0.0
    went_on: list[float] = []

    async def read(prompt: str) -> None:
        async with tree.pool.generate(prompt, stream_params(TOKENS)) as stream:
            got, engine = 0, ("", 0)
            async for chunk in stream:
                now = time.monotonic()
                origin = (chunk.child, chunk.incarnation)
                if not got:
                    engine = origin
                elif origin != engine and chunk.token_ids:
                    went_on.append(now - killed)
                    return
                elif killed and engine[0] != child:
                    return  # on another engine: nothing happens to it
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
    if not went_on:
        raise RuntimeError("no stream was on the engine that was killed")
    return Kill(min(went_on), max(went_on), killed, decided)
