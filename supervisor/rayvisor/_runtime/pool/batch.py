"""Batches of requests, in order, which wait for room in the queue instead of failing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio

from rayvisor._core.protocol.wire import Prompt
from rayvisor._core.requests.errors import InvalidRequestError, RequestError
from rayvisor._core.requests.results import Completion
from rayvisor._runtime.pool.streams import Generation

__all__ = ["Params", "pairs", "run_batch"]

Params = Mapping[str, Any]


def pairs(
    prompts: Iterable[Prompt], params: Params | Sequence[Params] | None
) -> list[tuple[Prompt, Params | None]]:
    """Return each prompt with its parameters.

    Raises
    ------
    InvalidRequestError
        Prompts and parameters do not fit together.
    """
    if isinstance(prompts, str):
        raise InvalidRequestError("prompts", prompts, "must be a list of prompts; for one, use generate")
    everything = list(prompts)
    if params is None or isinstance(params, Mapping):
        return [(prompt, params) for prompt in everything]
    if len(params) != len(everything):
        problem = f"must be one mapping, or one for each of {len(everything)} prompts"
        raise InvalidRequestError("params", params, problem)
    return list(zip(everything, params, strict=True))


async def run_batch(
    send: Callable[[Prompt, Params | None], Awaitable[Generation]],
    requests: Sequence[tuple[Prompt, Params | None]],
    *,
    return_errors: bool,
) -> list[Completion | RequestError]:
    """Send the requests as fast as ``send`` accepts them, and return their results in order."""
    results: list[Completion | RequestError | None] = [None] * len(requests)
    first: list[RequestError] = []

    def settle(position: int, end: Completion | RequestError) -> None:
        results[position] = end
        if isinstance(end, RequestError) and not return_errors:
            first.append(end)
            tasks.cancel_scope.cancel()

    async def collect(position: int, generation: Generation) -> None:
        async with generation:
            try:
                settle(position, await generation.result())
            except RequestError as error:
                settle(position, error)

    async with anyio.create_task_group() as tasks:
        for position, (prompt, params) in enumerate(requests):
            try:
                tasks.start_soon(collect, position, await send(prompt, params))
            except RequestError as error:
                settle(position, error)
    if first:
        raise first[0]
    return [end for end in results if end is not None]
