"""A pool of engines that loses no request.

    async with sup.pool("llm").generate("Once upon a time", {"max_tokens": 64}) as generation:
        async for chunk in generation:
            print(chunk.text, end="")
    print(generation.usage)

A request belongs to the pool, not to the engine that serves it. When that engine ends, the request continues
on another one, or on its next incarnation; its reader sees one stream without gap or repetition. How it
continues follows from its parameters: plain greedy requests continue behind the delivered tokens, all others
are generated again, compared, and the delivered part is skipped.

Reading
    ``async for`` over a [`Generation`][rayvisor.pool.Generation] yields chunks. Leaving the loop in any way
    aborts the request in its engine. To pause and continue later, use ``anext``. For a slow reader the
    engine's output is not read on: at most a few hundred tokens wait for it. ``await generation.result()``
    returns the whole [`Completion`][rayvisor.pool.Completion].

Failing
    ``generate`` itself raises ``InvalidRequestError``, ``QueueFullError`` and ``NoEngineError``. All other
    errors are raised where the stream is read, after the delivered chunks. No stream waits forever: each
    request has a timeout (600 s by default) and a number of attempts (5).
"""

from __future__ import annotations

from rayvisor._core.protocol.wire import LogprobEntry, Prompt
from rayvisor._core.requests.errors import (
    AttemptsExhaustedError,
    DeadlineExceededError,
    GenerationClosedError,
    GenerationInUseError,
    InvalidRequestError,
    NoEngineError,
    PoisonRequestError,
    QueueFullError,
    ReplayDivergedError,
    RequestError,
    UnmovableRequestError,
    WeightsChangedError,
)
from rayvisor._core.requests.limits import OnWeightsChanged, RequestLimits
from rayvisor._core.requests.results import Completion, Divergence, GenerationChunk, SampleResult, Usage
from rayvisor._core.requests.stats import EngineStats, PoolStats
from rayvisor._runtime.pool.pool import EnginePool
from rayvisor._runtime.pool.streams import Generation

__all__ = [
    "AttemptsExhaustedError",
    "Completion",
    "DeadlineExceededError",
    "Divergence",
    "EnginePool",
    "EngineStats",
    "Generation",
    "GenerationChunk",
    "GenerationClosedError",
    "GenerationInUseError",
    "InvalidRequestError",
    "LogprobEntry",
    "NoEngineError",
    "OnWeightsChanged",
    "PoisonRequestError",
    "PoolStats",
    "Prompt",
    "QueueFullError",
    "ReplayDivergedError",
    "RequestError",
    "RequestLimits",
    "SampleResult",
    "UnmovableRequestError",
    "Usage",
    "WeightsChangedError",
]
