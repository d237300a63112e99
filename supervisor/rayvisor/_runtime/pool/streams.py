"""The reader's side of a request."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

import anyio

from rayvisor._core.requests.errors import GenerationClosedError, GenerationInUseError, RequestError
from rayvisor._core.requests.results import Completion, GenerationChunk, Usage
from rayvisor._public import shown_as

__all__ = ["Generation", "Stream", "StreamOwner"]


class StreamOwner(Protocol):
    """The methods of a pool that a stream calls."""

    def check_loop(self, request: str) -> None:
        """Raise unless this is the pool's event loop."""
        ...

    def taken(self, request: str, index: int, tokens: int) -> None:
        """Record that the reader has taken tokens of a sample."""
        ...

    def abandon(self, request: str) -> None:
        """Abort a request that is no longer read."""
        ...

    def usage(self, request: str) -> Usage:
        """Return what an open request has used so far."""
        ...


class Stream:
    """The part of a request that has been delivered and not been read. Pool and reader both refer to it.

    It never refers to the reader's `Generation`, so that the garbage collector finalizes one that is dropped.
    """

    def __init__(self, owner: StreamOwner, request: str) -> None:
        self.request = request
        self.completion: Completion | None = None
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[GenerationChunk] = deque()
        self._error: RequestError | None = None
        self._usage: Usage | None = None
        self._arrived: anyio.Event | None = None
        self._reading = False
        self._whole = False  # only the completion is wanted, no chunks
        self._left = False

    @property
    def usage(self) -> Usage:
        """Tokens used by the request; final once it has ended."""
        return self._usage if self._usage is not None else self._owner.usage(self.request)

    @property
    def ended(self) -> bool:
        """Whether everything has been delivered."""
        return self._usage is not None

    def push(self, chunk: GenerationChunk) -> None:
        """Deliver a chunk."""
        if self._whole:
            self._mark_taken(chunk)
            return
        self._chunks.append(chunk)
        self._notify()

    def end(
        self, usage: Usage, *, completion: Completion | None = None, error: RequestError | None = None
    ) -> None:
        """Deliver the end: a completion or an error."""
        self._usage, self.completion, self._error = usage, completion, error
        self._notify()

    def leave(self) -> None:
        """Stop reading; the request is aborted if it has not ended."""
        self._left = True
        self._chunks.clear()
        if not self.ended:
            self._owner.abandon(self.request)

    def leave_from_anywhere(self) -> None:
        """Do the same from a finalizer, which may run in any thread and at any time."""
        if self.ended:
            return
        try:
            self._loop.call_soon_threadsafe(self.leave)
        except RuntimeError:  # the loop is closed, and nothing runs on it any more
            self._left = True

    @contextmanager
    def left_on_error(self) -> Iterator[None]:
        """Stop reading at once if the body is cancelled or raises, not when its traceback is collected.

        The end of the stream is no error, and neither is a call that must not read it: another reader may.
        """
        try:
            yield
        except (StopAsyncIteration, GenerationInUseError):
            raise
        except BaseException:
            if not self.ended:
                self._leave_here()
            raise

    def _leave_here(self) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # a coroutine that was never finished is being collected
            here = False
        if here:
            self.leave()
        else:
            self.leave_from_anywhere()

    async def take(self) -> GenerationChunk:
        """Return the next chunk, waiting for it if necessary. A cancelled call loses no chunk."""
        self._begin()
        try:
            while not self._chunks:
                self._check_end()
                if self.ended:
                    raise StopAsyncIteration
                await self._wait()
            chunk = self._chunks.popleft()
        finally:
            self._reading = False
        self._mark_taken(chunk)
        return chunk

    async def whole(self) -> Completion:
        """Wait for the end, discarding chunks, and return the completion."""
        if self.completion is not None and not self._reading:
            self._chunks.clear()  # also if the reader has left, or the pool has stopped
            return self.completion
        self._begin()
        try:
            self._whole = True
            while self._chunks:
                self._mark_taken(self._chunks.popleft())
            while not self.ended:
                await self._wait()
            self._check_end()
        finally:
            self._reading = self._whole = False
        if self.completion is None:
            raise GenerationClosedError(self.request)
        return self.completion

    def _begin(self) -> None:
        self._owner.check_loop(self.request)
        if self._reading:
            raise GenerationInUseError(self.request, "is being read by another task; a stream has one reader")
        if self._left:
            raise GenerationClosedError(self.request)
        self._reading = True

    def _check_end(self) -> None:
        if self._left:
            raise GenerationClosedError(self.request)
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        # Bounded by the deadline of the request, at which the pool ends the stream.
        self._arrived = anyio.Event()
        await self._arrived.wait()

    def _notify(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    def _mark_taken(self, chunk: GenerationChunk) -> None:
        if chunk.token_ids and not self.ended:
            self._owner.taken(self.request, chunk.index, len(chunk.token_ids))


class Generation:
    """The stream of one request: an async iterator of chunks, and an async context manager.

    ``async for`` reads it to its end. Leaving that loop early (``break``, an exception, cancellation) aborts
    the request in its engine, and so does ``aclose``, leaving the ``async with`` block, or dropping the last
    reference. To read a few chunks and continue later, use ``anext(generation)``.

    One task reads it at a time, on the pool's event loop. Cancelling ``anext`` loses no chunk.

    Examples
    --------
    Wait for the whole completion::

        completion = await pool.generate("Once", {"max_tokens": 8}).result()

    Read the first chunk only::

        async with pool.generate("Once") as generation:
            first = await anext(generation)
    """

    __slots__ = ("__weakref__", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        weakref.finalize(self, stream.leave_from_anywhere).atexit = False

    @property
    def request(self) -> str:
        """Id of the request, as in logs and errors."""
        return self._stream.request

    @property
    def usage(self) -> Usage:
        """Tokens used so far; final once the request has ended."""
        return self._stream.usage

    @property
    def completion(self) -> Completion | None:
        """The completion, once the request has finished; None before, and if it failed or was aborted."""
        return self._stream.completion

    async def result(self) -> Completion:
        """Wait for the end and return the whole completion, including chunks that were read before.

        Cancelling it aborts the request.

        Raises
        ------
        RequestError
            The request failed.
        """
        with self._stream.left_on_error():
            return await self._stream.whole()

    def __aiter__(self) -> _Reading:
        return _Reading(self, self._stream)

    async def __anext__(self) -> GenerationChunk:
        return await self._stream.take()

    async def aclose(self) -> None:
        """Stop reading; a request that has not ended is aborted in its engine."""
        self._stream.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.leave()


class _Reading:
    """One ``async for`` over a generation. It is finalized with its loop, and then stops the reading."""

    __slots__ = ("__weakref__", "_generation", "_stream")

    def __init__(self, generation: Generation, stream: Stream) -> None:
        self._generation = generation  # which must not be finalized before
        self._stream = stream
        weakref.finalize(self, stream.leave_from_anywhere).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationChunk:
        with self._stream.left_on_error():
            return await self._stream.take()


shown_as("rayvisor.pool", Generation)
