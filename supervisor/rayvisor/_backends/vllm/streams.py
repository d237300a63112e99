"""The requests of a running AsyncLLM, as streams that end when they must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from rayvisor._backends.host.engine import EngineError, EngineGoneError, RequestLostError, RequestRefusedError
from rayvisor._backends.vllm.requests import (
    ContinuedText,
    nothing_left,
    read_output,
    sampling_params,
    token_ids_of,
)
from rayvisor._core.protocol.causes import in_one_line, plain_causes
from rayvisor._core.protocol.wire import Chunk, GenerateCommand
from rayvisor._log import get_logger

__all__ = ["Streams"]

log = get_logger("rayvisor.vllm")

_ABORT_SECONDS = 1.0


class _Running:
    """One request in vLLM: where its output comes, and whether somebody asked for its end."""

    __slots__ = ("asked", "collector", "request")

    def __init__(self, request: str) -> None:
        self.request = request
        self.collector: Any = None
        self.asked = False


class Streams:
    """The requests that an AsyncLLM works on.

    It reads vLLM's output collectors itself, instead of through ``AsyncLLM.generate``: so a stream can
    be ended from here, where vLLM would leave it waiting, and nothing else is done for each token.

    Parameters
    ----------
    llm
        The running ``AsyncLLM``.
    """

    def __init__(self, llm: Any) -> None:
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm = llm
        self._tokenizer = llm.renderer.tokenizer
        self._dead = EngineDeadError
        self._overload = GracefulHTTPError
        self._clients_fault = (VLLMClientError, TypeError, ValueError, KeyError, OverflowError)
        self._running: dict[str, _Running] = {}
        self._over: str | None = None

    def end(self, message: str) -> None:
        """End every stream with EngineGoneError, now and from now on."""
        self._over = message
        for running in self._running.values():
            if running.collector is not None:
                running.collector.put(EngineGoneError(message))

    async def abort(self, requests: Sequence[str]) -> None:
        """End these requests: their streams end without a finish reason."""
        wanted = set(requests)
        for running in list(self._running.values()):
            if running.request in wanted and not running.asked:
                running.asked = True
                if running.collector is not None:
                    await self._abort(running.collector)

    async def generate(self, order: GenerateCommand) -> AsyncGenerator[Chunk, None]:  # noqa: C901 - one loop
        """Tokens of one order as they come."""
        running = _Running(order.request)
        name = f"{order.request}#{order.attempt}"
        self._running[name] = running
        finished = False
        try:
            ids, continued, prompt = await self._prepare(order)
            if prompt is None:
                yield Chunk(
                    order.request, order.attempt, (), continued.rest() if continued else "", None, "length"
                )
                return
            await self._submit(running, name, prompt, order)
            collector = running.collector
            first = True
            while not finished:
                try:
                    output = collector.get_nowait() or await collector.get()
                except Exception as error:  # noqa: BLE001 - it comes out as plain data
                    raise self._plain(error, accepted=True) from None
                chunk = read_output(order, output, first=first)
                finished = chunk.finish_reason is not None
                if finished and chunk.finish_reason not in ("stop", "length"):
                    if running.asked:
                        return
                    raise RequestLostError(f"vLLM ended the request unasked ({chunk.finish_reason})")
                if continued is not None:
                    chunk = continued.carry_on(chunk)
                    if first:
                        chunk = chunk._replace(prompt_token_ids=tuple(ids))
                if chunk.token_ids or chunk.text or chunk.finish_reason:
                    first = False
                    yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            if self._running.get(name) is running:
                del self._running[name]
            if not finished and not running.asked and running.collector is not None:
                await self._abort(running.collector)

    async def _prepare(self, order: GenerateCommand) -> tuple[Sequence[int], ContinuedText | None, Any]:
        """Read an order: its prompt's ids where it has some, its text so far, vLLM's prompt.

        The prompt is None when nothing is left to generate.
        """
        if self._over:
            raise EngineGoneError(self._over)
        try:
            prompt = token_ids_of(order.prompt, self._tokenizer)
            ids: Sequence[int] = () if isinstance(prompt, str) else prompt
            continued = None
            if order.delivered:
                if isinstance(prompt, str):
                    raise TypeError("prompt must be token ids where tokens have been delivered")  # noqa: TRY301
                continued = ContinuedText(self._tokenizer, order, prompt)
                if nothing_left(order, prompt, self._llm.model_config.max_model_len):
                    return ids, continued, None
            given = (
                {"prompt": prompt}
                if isinstance(prompt, str)
                else {"prompt_token_ids": [*ids, *order.delivered]}
            )
            renderer = self._llm.renderer
            (rendered,) = await renderer.render_cmpl_async([given], renderer.default_cmpl_tok_params)
        except Exception as error:  # noqa: BLE001 - it comes out as plain data
            raise self._plain(error, accepted=False) from None
        return ids, continued, rendered

    async def _submit(self, running: _Running, name: str, prompt: Any, order: GenerateCommand) -> None:
        try:
            collector = await self._llm.add_request(name, prompt, sampling_params(order))
        except Exception as error:  # noqa: BLE001 - as above
            raise self._plain(error, accepted=False) from None
        running.collector = collector
        if self._over:
            raise EngineGoneError(self._over)
        if running.asked:  # while vLLM was taking it
            await self._abort(collector)

    async def _abort(self, collector: Any) -> None:
        if self._over:
            return
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                await self._llm.abort(collector.request_id, internal=True)
        except Exception as error:  # noqa: BLE001 - an engine that cannot take it is about to be found dead
            log.warning("vllm.abort.failed", request=collector.request_id, error=str(error))

    def _plain(self, error: Exception, *, accepted: bool) -> EngineError:
        """Turn what vLLM raises for one request into an exception of ours."""
        if isinstance(error, EngineError):
            return error
        if isinstance(error, self._dead):
            return EngineGoneError(str(error))
        if not accepted and isinstance(error, self._clients_fault):
            return RequestRefusedError(plain_causes(error))
        if isinstance(error, self._overload):
            return RequestLostError(f"vLLM did not take the request: {error}")
        log.warning("vllm.request.failed", error=f"{type(error).__name__}: {error}")
        return RequestLostError(in_one_line(error))
