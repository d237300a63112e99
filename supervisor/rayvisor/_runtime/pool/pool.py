"""The handle of an engine pool: what users call.

`PoolRuntime` does the work behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from rayvisor._core.requests.errors import QueueFullError
from rayvisor._core.requests.limits import OnWeightsChanged
from rayvisor._public import shown_as
from rayvisor._runtime.pool.batch import Params, pairs, run_batch

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import Prompt
    from rayvisor._core.requests.errors import RequestError
    from rayvisor._core.requests.results import Completion
    from rayvisor._core.requests.stats import PoolStats
    from rayvisor._runtime.pool.runtime import PoolRuntime
    from rayvisor._runtime.pool.streams import Generation

__all__ = ["EnginePool"]


class EnginePool:
    """A pool of engines that loses no request: each continues on another engine when its own ends.

    [`Supervisor.pool`][rayvisor.Supervisor.pool] gives it; it lasts as long as its supervisor, whatever
    becomes of the engines.

    Examples
    --------
    Inside ``async with rv.Supervisor(spec) as sup``::

        async for chunk in sup.pool("llm").generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")
        completion = await sup.pool("llm").generate("Once", {"temperature": 0}).result()
        print(completion.text, completion.usage)
    """

    __slots__ = ("_runtime",)

    def __init__(self, runtime: PoolRuntime) -> None:
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<EnginePool {self.name}>"

    @property
    def name(self) -> str:
        """Path of the pool: ``"llm"``."""
        return self._runtime.name

    def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
    ) -> Generation:
        """Send a request, and return its stream immediately.

        Parameters
        ----------
        prompt
            Text, token ids, or chat messages.
        params
            Fields of vLLM's ``SamplingParams``; the others have vLLM's defaults (``max_tokens`` 16,
            ``temperature`` 1.0).
        timeout
            Seconds until its last chunk must have arrived, the wait for an engine included.
        max_attempts
            How many engines may try it.
        on_divergence
            What to do if it is generated again and the result differs; see
            [`RequestLimits`][rayvisor.pool.RequestLimits].
        on_weights_changed
            What to do if the weights change under it: ``"splice"``, ``"restart"`` or ``"fail"``; see there.

        Raises
        ------
        InvalidRequestError
            A value cannot work.
        QueueFullError
            Too many requests are waiting already.
        NoEngineError
            No engine will come back.
        """
        return self._runtime.submit(
            prompt,
            params,
            timeout=timeout,
            max_attempts=max_attempts,
            on_divergence=on_divergence,
            on_weights_changed=on_weights_changed,
        )

    @overload
    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: Literal[False] = False,
    ) -> list[Completion]: ...

    @overload
    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: Literal[True],
    ) -> list[Completion | RequestError]: ...

    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: bool = False,
    ) -> list[Any]:
        """Send a batch, and return its completions in the order of the prompts.

        It waits for room in the queue instead of failing, so a batch may have any length.

        Parameters
        ----------
        prompts
            One prompt for each request.
        params
            One mapping for all requests, or a sequence with one mapping for each.
        timeout, max_attempts, on_divergence, on_weights_changed
            As for ``generate``, for each request from the moment it is sent.
        return_errors
            Return the error of a failed request in its place. If False, the first error is raised and the
            other requests are aborted.
        """

        async def send(prompt: Prompt, own: Params | None) -> Generation:
            while True:
                try:
                    return self.generate(
                        prompt,
                        own,
                        timeout=timeout,
                        max_attempts=max_attempts,
                        on_divergence=on_divergence,
                        on_weights_changed=on_weights_changed,
                    )
                except QueueFullError:
                    await self._runtime.room()

        return await run_batch(send, pairs(prompts, params), return_errors=return_errors)

    def stats(self) -> PoolStats:
        """Return how many requests wait, run and have ended."""
        return self._runtime.stats()


shown_as("rayvisor.pool", EnginePool)
