"""An HTTP/1.1 server in this process, shared by the control socket and the live page.

Everything is bounded: connections, streams among them, the size of a request, the time to read a request and
to write an answer. A client that disconnects affects nothing else; its request is still carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import select
import socket
import struct
import termios
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import anyio.abc
import h11

from rayvisor._edges.http.routes import Answer, RefusalError, StartTask
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

__all__ = ["Handler", "HttpServer"]

log = get_logger("rayvisor.control")

Handler = Callable[[h11.Request, bytes], Awaitable[Answer]]
"""Answers a request, given its body; may raise `RefusalError` only."""

CONNECTIONS_MAX = 32
STREAMS_MAX = 8
HEAD_BYTES = 16 * 1024
BODY_BYTES = 64 * 1024
LINGER_BYTES = 1 << 20

_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


class HttpServer(ABC):
    """Serves its listeners in a separate task, whose failure does not affect the tree.

    Parameters
    ----------
    name
        Name of the task.
    timeouts
        How long clients may take, and how long the end may.
    """

    def __init__(self, name: str, *, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges) -> None:
        self._name = name
        self._timeouts = timeouts
        self._task: asyncio.Task[None] | None = None
        self._listeners: Sequence[anyio.abc.SocketListener] = ()
        self._closing = anyio.Event()
        self._idle = anyio.Event()
        self._open = 0
        self._streams: set[_Reader] = set()
        self._counted: Counter[str] = Counter()

    @abstractmethod
    async def open(self) -> None:
        """Bind the listeners and set ``_listeners``."""

    @abstractmethod
    def handler(self, start_task: StartTask) -> Handler:
        """Return the request handler; ``start_task`` starts a task in the server's task group."""

    async def start(self) -> None:
        """Bind and start serving; raise the errors of ``open``."""
        await self.open()
        self._task = asyncio.create_task(self.serve(), name=self._name)
        self._task.add_done_callback(_ended)

    async def end(self) -> None:
        """Close and wait until the task has ended, for twice the timeout of closing (2 s) at most."""
        self.close()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=2 * self._timeouts.close)

    def close(self) -> None:
        """Stop accepting connections; open ones get a short time to finish."""
        self._closing.set()

    async def serve(self) -> None:
        """Serve until closed or cancelled."""
        listeners = self._listeners
        if not listeners:
            raise RuntimeError("call open() first")
        try:
            async with anyio.create_task_group() as tasks:
                handler = self.handler(tasks.start_soon)
                for listener in listeners:
                    tasks.start_soon(self._accept, listener, handler, tasks)
                await self._closing.wait()
                if self._open:
                    with anyio.move_on_after(self._timeouts.close):
                        await self._idle.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.close()
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.close):
                for listener in listeners:
                    await listener.aclose()

    async def _accept(
        self, listener: anyio.abc.SocketListener, handler: Handler, tasks: anyio.abc.TaskGroup
    ) -> None:
        while not self._closing.is_set():
            try:
                stream = await listener.accept()
            except OSError as error:
                # For example, no file descriptor is free. Accepting continues a little later.
                self._count(tasks, "control.accept.failed", why=str(error))
                await anyio.sleep(self._timeouts.accept_retry)
                continue
            if self._open >= CONNECTIONS_MAX:
                self._count(tasks, "control.full", connections=self._open)
                await stream.aclose()
                continue
            self._open += 1
            self._idle = anyio.Event()
            tasks.start_soon(self._serve_connection, stream, handler)

    def _count(self, tasks: anyio.abc.TaskGroup, event: str, **facts: object) -> None:
        """Count an event that clients can cause any number of times; log its number after a while."""
        self._counted[event] += 1
        if self._counted[event] == 1:
            tasks.start_soon(self._report, event, facts)

    async def _report(self, event: str, facts: Mapping[str, object]) -> None:
        try:
            await anyio.sleep(self._timeouts.report)
        finally:
            log.warning(event, **facts, times=self._counted.pop(event))

    async def _serve_connection(self, stream: anyio.abc.SocketStream, handler: Handler) -> None:
        try:
            async with stream:
                await self._exchange(stream, handler)
        except TimeoutError:
            log.warning("control.client.slow", seconds=self._timeouts.write)
        except _GONE as error:
            log.debug("control.client.gone", why=f"{type(error).__name__}: {error}")
        except Exception:
            log.exception("control.connection.crashed")
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _exchange(self, stream: anyio.abc.SocketStream, handler: Handler) -> None:
        """Read one request and send one answer."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        heads: list[h11.Request] = []
        try:
            with anyio.fail_after(self._timeouts.read):
                request, body = await _read(http, stream, heads)
            answer = await _answered(handler, _as_get(request), body)
        except TimeoutError:
            answer = RefusalError(
                408, "TooSlow", f"the request did not arrive within {self._timeouts.read:g} s"
            ).answer
        except h11.RemoteProtocolError as error:
            answer = RefusalError(error.error_status_hint, "BadRequest", str(error)).answer
        except RefusalError as refusal:
            answer = refusal.answer
        wants_body = not (heads and heads[0].method == b"HEAD")
        if answer.lines is not None and wants_body:
            if not self._has_place():
                answer = RefusalError(503, "Busy", f"{STREAMS_MAX} streams are already open").answer
            else:
                await self._stream(http, stream, answer)
                return
        payload = json.dumps(answer.body).encode() + b"\n" if answer.content is None else answer.content
        length = [] if answer.lines is not None else [("Content-Length", str(len(payload)))]
        headers = [*_headers(answer), *length]
        with anyio.fail_after(self._timeouts.write):
            await _send(http, stream, h11.Response(status_code=answer.status, headers=headers))
            if wants_body:
                await _send(http, stream, h11.Data(payload))
            await _send(http, stream, h11.EndOfMessage())
        if http.their_state is not h11.DONE:
            await _discard_rest(stream, self._timeouts.linger)

    async def _stream(self, http: h11.Connection, stream: anyio.abc.SocketStream, answer: Answer) -> None:
        """Send lines as they are produced until the reader disconnects."""
        lines = answer.lines
        if lines is None:
            return
        with anyio.CancelScope() as scope:
            reader = _Reader(stream, scope)
            self._streams.add(reader)
            try:
                headers = [*_headers(answer), ("Transfer-Encoding", "chunked")]
                await reader.send(http, h11.Response(status_code=answer.status, headers=headers))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(reader.cancel_when_gone, self._timeouts.hang_up)
                    with contextlib.suppress(*_GONE, TimeoutError):
                        async for line in lines:
                            with anyio.fail_after(answer.timeout):
                                await reader.send(http, h11.Data(line))
                        await reader.send(http, h11.EndOfMessage())
                    tasks.cancel_scope.cancel()
            finally:
                self._streams.discard(reader)

    def _has_place(self) -> bool:
        """Whether there is a place for a further stream; a reader that does not read loses its place."""
        if len(self._streams) < STREAMS_MAX:
            return True
        slowest = max(self._streams, key=_Reader.unread_for)
        if slowest.unread_for() <= self._timeouts.unread:
            return False
        self._streams.discard(slowest)
        slowest.scope.cancel()
        return True


class _Reader:
    """The reader of a stream: whether it is still there, and whether it reads."""

    def __init__(self, stream: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self._stream = stream
        self._socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's extra(), not Django's
        self._has_ended = False
        self._unread = 0
        self._read_at = time.monotonic()

    def unread_for(self) -> float:
        """Return for how many seconds it has had something to read and has read nothing."""
        if self._has_ended and self._socket.family != socket.AF_UNIX:
            return math.inf  # over TCP this may be one that is gone
        left = self._left()
        if not left or left < self._unread:
            self._read_at = time.monotonic()
        self._unread = left
        return time.monotonic() - self._read_at

    async def send(self, http: h11.Connection, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        """Send a part of the answer."""
        self.unread_for()
        data = http.send(event) or b""
        await self._stream.send(data)
        if self._left() < self._unread + len(data):
            self._read_at = time.monotonic()
        self._unread = self._left()

    def _left(self) -> int:
        """Return the size of the data that was sent and not yet read (over TCP: received)."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
        except OSError:  # it is closed
            return 0

    async def cancel_when_gone(self, interval: float) -> None:
        """Cancel the stream when the reader is gone; an idle stream would not notice otherwise.

        A reader that has closed only its own direction, because it has nothing more to send, still reads.
        """
        with contextlib.suppress(*_GONE):
            while await self._stream.receive():
                pass
        self._has_ended = True
        connection = select.poll()
        connection.register(self._socket.fileno(), select.POLLHUP | select.POLLERR)
        while not connection.poll(0):  # noqa: ASYNC110 - a hang-up after the end of the input has no event
            await anyio.sleep(interval)
        self.scope.cancel()


async def _answered(handler: Handler, request: h11.Request, body: bytes) -> Answer:
    """Return the handler's answer; its own unforeseen error is an answer too."""
    try:
        return await handler(request, body)
    except RefusalError as refusal:
        return refusal.answer
    except Exception as error:
        log.exception("control.request.crashed", method=request.method, target=request.target)
        return RefusalError(500, type(error).__name__, "an internal error; the log has its traceback").answer


def _as_get(request: h11.Request) -> h11.Request:
    """Return the GET request of a HEAD request, which has the same answer without its body."""
    if request.method != b"HEAD":
        return request
    return h11.Request(
        method=b"GET", target=request.target, headers=request.headers, http_version=request.http_version
    )


async def _read(
    http: h11.Connection, stream: anyio.abc.SocketStream, heads: list[h11.Request]
) -> tuple[h11.Request, bytes]:
    """Read a request; its head is put into ``heads`` even if its body is refused."""
    request: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                await _send(http, stream, h11.InformationalResponse(status_code=100, headers=[]))
            try:
                http.receive_data(await stream.receive(HEAD_BYTES))
            except anyio.EndOfStream:
                http.receive_data(b"")
        elif isinstance(event, h11.Request):
            request = event
            heads.append(event)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES:
                raise RefusalError(413, "TooLarge", f"the body is larger than {BODY_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, body
        else:
            raise anyio.EndOfStream  # the client sent nothing


async def _discard_rest(stream: anyio.abc.SocketStream, timeout: float) -> None:
    """Discard the rest of a refused request; closing before it is read would reset the answer."""
    with anyio.move_on_after(timeout), contextlib.suppress(*_GONE):
        await stream.send_eof()
        for _ in range(LINGER_BYTES // HEAD_BYTES):
            await stream.receive(HEAD_BYTES)


async def _send(
    http: h11.Connection,
    stream: anyio.abc.SocketStream,
    event: h11.Response | h11.InformationalResponse | h11.Data | h11.EndOfMessage,
) -> None:
    data = http.send(event)
    if data:
        await stream.send(data)


def _ended(task: asyncio.Task[None]) -> None:
    """Log a crash of the server's task; the tree continues without its socket."""
    if not task.cancelled() and task.exception() is not None:
        log.error("control.crashed", exc_info=task.exception())


def _headers(answer: Answer) -> list[tuple[str, str]]:
    return [("Content-Type", answer.kind), ("Connection", "close"), *answer.headers]
