"""The requests of a running AsyncLLM, as streams that this process can end at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from rayvisor._backends.host.engine import EngineError, EngineGoneError, RequestLostError, RequestRefusedError
from rayvisor._backends.vllm.requests import (
    ContinuedText,
    chunk_of,
    is_complete,
    sampling_params,
    token_ids_of,
)
from rayvisor._core.protocol.causes import in_one_line, plain_causes
from rayvisor._core.protocol.wire import Chunk, GenerateCommand
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, VllmTimeouts

__all__ = ["Streams"]

log = get_logger("rayvisor.vllm")

_NO_ENDS = ("abort", "error")
"""The finish reasons with which vLLM gives a request up. All others end it, also those of later versions."""


class _Running:
    """One request in vLLM: its output collector, whether it has finished, and whether to abort it."""

    __slots__ = ("abort_requested", "collector", "finished", "request")

    def __init__(self, request: str) -> None:
        self.request = request
        self.collector: Any = None
        self.abort_requested = False
        self.finished = False


class Streams:
    """The requests of one AsyncLLM.

    It reads vLLM's output collectors directly instead of through ``AsyncLLM.generate``. So it can end a
    stream that vLLM would leave waiting, and does no other work for each token.

    Parameters
    ----------
    llm
        The running ``AsyncLLM``.
    timeouts
        How long vLLM may take to accept an abort.
    """

    def __init__(self, llm: Any, *, timeouts: VllmTimeouts = DEFAULT_TIMEOUTS.vllm) -> None:
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm = llm
        self._timeouts = timeouts
        self._tokenizer = llm.renderer.tokenizer
        self._dead_error = EngineDeadError
        self._overload_error = GracefulHTTPError
        self._client_errors = (VLLMClientError, TypeError, ValueError, KeyError, OverflowError)
        self._running: dict[str, _Running] = {}
        self._end_reason: str | None = None

    def end(self, message: str) -> None:
        """End every stream with EngineGoneError: the present ones, and all that follow."""
        self._end_reason = message
        for running in self._running.values():
            if running.collector is not None:
                running.collector.put(EngineGoneError(message))

    async def abort(self, requests: Sequence[str]) -> None:
        """Abort these requests; their streams end without a finish reason."""
        wanted = set(requests)
        for running in list(self._running.values()):
            if running.request in wanted and not running.abort_requested:
                running.abort_requested = True
                if running.collector is not None:
                    await self._abort(running.collector)

    async def generate(self, command: GenerateCommand) -> AsyncGenerator[Chunk, None]:
        """Yield the tokens of one request as they arrive.

        Raises
        ------
        RequestRefusedError, RequestLostError, EngineGoneError
            As [`Engine.generate`][rayvisor._backends.host.engine.Engine] does.
        """
        running = _Running(command.request)
        name = f"{command.request}#{command.attempt}"
        self._running[name] = running
        try:
            ids, continued, prompt = await self._prepare(command)
            if prompt is None:
                yield Chunk(
                    command.request,
                    command.attempt,
                    (),
                    continued.rest() if continued else "",
                    None,
                    "length",
                )
                return
            await self._submit(running, name, prompt, command)
            first = True
            while not running.finished:
                chunk = await self._next_chunk(running, command, first=first)
                if chunk is None:
                    return
                if continued is not None:
                    chunk = continued.rewrite(chunk)
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
            if not running.finished and not running.abort_requested and running.collector is not None:
                await self._abort(running.collector)

    async def _next_chunk(self, running: _Running, command: GenerateCommand, *, first: bool) -> Chunk | None:
        """Wait for the next output of a request; None once its requested abort is complete."""
        collector = running.collector
        try:
            output = collector.get_nowait() or await collector.get()
        except Exception as error:  # noqa: BLE001 - any exception of vLLM's is converted to one of ours
            raise self._to_engine_error(error, accepted=True) from None
        chunk = chunk_of(command, output, first=first)
        running.finished = chunk.finish_reason is not None
        if chunk.finish_reason not in _NO_ENDS:
            return chunk
        if running.abort_requested:
            return None
        raise RequestLostError(f"vLLM ended the request by itself ({chunk.finish_reason})")

    async def _prepare(self, command: GenerateCommand) -> tuple[Sequence[int], ContinuedText | None, Any]:
        """Return the ids of the prompt, if it has some, the text so far, and the prompt for vLLM.

        The last one is None if nothing is left to generate.
        """
        if self._end_reason:
            raise EngineGoneError(self._end_reason)
        try:
            prompt = token_ids_of(command.prompt, self._tokenizer)
            ids: Sequence[int] = () if isinstance(prompt, str) else prompt
            continued = self._continue(command, prompt) if command.delivered else None
            if is_complete(command, ids, self._llm.model_config.max_model_len):
                return ids, continued, None
            given = (
                {"prompt": prompt}
                if isinstance(prompt, str)
                else {"prompt_token_ids": [*ids, *command.delivered]}
            )
            renderer = self._llm.renderer
            (rendered,) = await renderer.render_cmpl_async([given], renderer.default_cmpl_tok_params)
        except Exception as error:  # noqa: BLE001 - any exception of vLLM's is converted to one of ours
            raise self._to_engine_error(error, accepted=False) from None
        return ids, continued, rendered

    def _continue(self, command: GenerateCommand, prompt: Sequence[int] | str) -> ContinuedText:
        if isinstance(prompt, str):
            raise TypeError("prompt must be token ids where tokens have been delivered")
        return ContinuedText(self._tokenizer, command, prompt)

    async def _submit(self, running: _Running, name: str, prompt: Any, command: GenerateCommand) -> None:
        try:
            collector = await self._llm.add_request(name, prompt, sampling_params(command))
        except Exception as error:  # noqa: BLE001 - any exception of vLLM's is converted to one of ours
            raise self._to_engine_error(error, accepted=False) from None
        running.collector = collector
        if self._end_reason:
            raise EngineGoneError(self._end_reason)
        if running.abort_requested:  # while vLLM was accepting the request
            await self._abort(collector)

    async def _abort(self, collector: Any) -> None:
        if self._end_reason:
            return
        try:
            async with asyncio.timeout(self._timeouts.abort):
                await self._llm.abort(collector.request_id, internal=True)
        except Exception as error:  # noqa: BLE001 - an engine that fails here is about to be found dead
            log.warning("vllm.abort.failed", request=collector.request_id, error=str(error))

    def _to_engine_error(self, error: Exception, *, accepted: bool) -> EngineError:
        """Convert an exception of vLLM's for one request to one of ours."""
        if isinstance(error, EngineError):
            return error
        if isinstance(error, self._dead_error):
            return EngineGoneError(str(error))
        if not accepted and isinstance(error, self._client_errors):
            return RequestRefusedError(plain_causes(error))
        if isinstance(error, self._overload_error):
            return RequestLostError(f"vLLM did not accept the request: {error}")
        log.warning("vllm.request.failed", error=f"{type(error).__name__}: {error}")
        return RequestLostError(in_one_line(error))
