"""HTTP/1.1 on a Unix socket, for one tree.

Everything is bounded: connections, streams among them, the size of a request, the time to read one and to
write an answer. A client that breaks off harms nobody: what it asked for is carried out all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc
import anyio.to_thread
import h11

from rayvisor._control.routes import Answer, Controls, Refusal, Routes
from rayvisor._control.sockets import claim, free_path
from rayvisor.errors import ControlSocketError
from rayvisor.log import get_logger

__all__ = ["ControlServer"]

log = get_logger("rayvisor.control")

CONNECTIONS = 32
STREAMS = 8
HEAD_BYTES = 16 * 1024
BODY_BYTES = 64 * 1024
READ_SECONDS = 10.0
WRITE_SECONDS = 10.0
CLOSE_SECONDS = 1.0
LINGER_SECONDS = 1.0
LINGER_BYTES = 1 << 20
REST_SECONDS = 0.1

_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


class ControlServer:
    """Answers on one socket.

    Parameters
    ----------
    controls
        The supervisor.
    path
        Of the socket; True: one that `find` finds.
    """

    def __init__(self, controls: Controls, path: str | os.PathLike[str] | Literal[True]) -> None:
        self.path = free_path() if path is True else Path(path).absolute()
        self._controls = controls
        self._task: asyncio.Task[None] | None = None
        self._listener: anyio.abc.SocketListener | None = None
        self._closing = anyio.Event()
        self._idle = anyio.Event()
        self._own: tuple[int, int] | None = None
        self._open = 0
        self._streams = 0

    async def start(self) -> None:
        """Bind the socket and begin to answer; raises as ``open``."""
        await self.open()
        self._task = asyncio.create_task(self.serve(), name="rayvisor control")
        self._task.add_done_callback(_ended)

    async def end(self) -> None:
        """Remove the socket, and wait until nothing is left of it: a second or two at most."""
        self.close()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=2 * CLOSE_SECONDS)

    async def open(self) -> None:
        """Bind the socket.

        Raises
        ------
        ControlSocketError
            It cannot be: see `claim`.
        """
        claimed = claim(self.path)
        await anyio.to_thread.run_sync(claimed.__enter__)  # it looks at files, and may wait for others
        try:
            self._listener = await anyio.create_unix_listener(self.path, mode=0o600)
            about = self.path.lstat()
        except OSError as error:
            raise ControlSocketError(str(self.path), error.strerror or str(error)) from error
        finally:
            claimed.__exit__(None, None, None)
        self._own = (about.st_dev, about.st_ino)
        log.info("control.open", socket=str(self.path))

    def close(self) -> None:
        """Take no more connections; those that are open get a moment."""
        self._closing.set()
        own, self._own = self._own, None
        if own is None:
            return
        try:
            about = self.path.lstat()
            if (about.st_dev, about.st_ino) == own:  # not one that somebody has put in its place
                self.path.unlink()
        except OSError as error:
            log.warning("control.left", socket=str(self.path), why=str(error))

    async def serve(self) -> None:
        """Answer until closed, or cancelled."""
        listener = self._listener
        if listener is None:
            raise RuntimeError("open() comes first")
        try:
            async with anyio.create_task_group() as tasks:
                routes = Routes(self._controls, tasks.start_soon)
                tasks.start_soon(self._accept, listener, routes, tasks)
                await self._closing.wait()
                if self._open:
                    with anyio.move_on_after(CLOSE_SECONDS):
                        await self._idle.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.close()
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS):
                await listener.aclose()

    async def _accept(
        self, listener: anyio.abc.SocketListener, routes: Routes, tasks: anyio.abc.TaskGroup
    ) -> None:
        while not self._closing.is_set():
            try:
                stream = await listener.accept()
            except OSError as error:
                # No descriptor is free, for example: the tree goes on, and so does this, a little later.
                log.warning("control.accept.failed", why=str(error))
                await anyio.sleep(REST_SECONDS)
                continue
            if self._open >= CONNECTIONS:
                log.warning("control.full", connections=self._open)
                await stream.aclose()
                continue
            self._open += 1
            self._idle = anyio.Event()
            tasks.start_soon(self._attend, stream, routes)

    async def _attend(self, stream: anyio.abc.SocketStream, routes: Routes) -> None:
        try:
            async with stream:
                await self._exchange(stream, routes)
        except TimeoutError:
            log.warning("control.client.slow", seconds=WRITE_SECONDS)
        except _GONE as error:
            log.debug("control.client.gone", why=f"{type(error).__name__}: {error}")
        except Exception:
            log.exception("control.broke")
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _exchange(self, stream: anyio.abc.SocketStream, routes: Routes) -> None:
        """One request, one answer."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        head = ""
        try:
            with anyio.fail_after(READ_SECONDS):
                request, body = await _read(http, stream)
            head = request.method.decode("ascii")
            answer = await routes.answer(head, request.target.decode("ascii", "replace"), body)
        except TimeoutError:
            answer = Refusal(408, "TooSlow", f"the request was not there within {READ_SECONDS:g} s").answer
        except h11.RemoteProtocolError as error:
            answer = Refusal(error.error_status_hint, "BadRequest", str(error)).answer
        except Refusal as refusal:
            answer = refusal.answer
        if answer.lines is not None:
            if self._streams >= STREAMS:
                answer = Refusal(503, "Busy", f"{STREAMS} streams are open already").answer
            else:
                await self._stream(http, stream, answer)
                return
        payload = json.dumps(answer.body).encode() + b"\n"
        headers = [*_headers(answer), ("Content-Length", str(len(payload)))]
        with anyio.fail_after(WRITE_SECONDS):
            await _send(http, stream, h11.Response(status_code=answer.status, headers=headers))
            await _send(http, stream, h11.Data(payload))
            await _send(http, stream, h11.EndOfMessage())
        if http.their_state is not h11.DONE:
            await _hear_out(stream)

    async def _stream(self, http: h11.Connection, stream: anyio.abc.SocketStream, answer: Answer) -> None:
        """Send lines as they come; a reader that stops reading loses the oldest ones, and is told so."""
        lines = answer.lines
        if lines is None:
            return
        self._streams += 1
        try:
            headers = [*_headers(answer, "application/jsonl"), ("Transfer-Encoding", "chunked")]
            await _send(http, stream, h11.Response(status_code=answer.status, headers=headers))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_gone, stream, tasks.cancel_scope)
                with contextlib.suppress(*_GONE):
                    async for line in lines:
                        await _send(http, stream, h11.Data(line))
                    await _send(http, stream, h11.EndOfMessage())
                tasks.cancel_scope.cancel()
        finally:
            self._streams -= 1


async def _read(http: h11.Connection, stream: anyio.abc.SocketStream) -> tuple[h11.Request, bytes]:
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
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES:
                raise Refusal(413, "TooLarge", f"the body is larger than {BODY_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, body
        else:
            raise anyio.EndOfStream  # it said nothing


async def _hear_out(stream: anyio.abc.SocketStream) -> None:
    """Throw away the rest of a request that was refused: to close on it would take the answer back."""
    with anyio.move_on_after(LINGER_SECONDS), contextlib.suppress(*_GONE):
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


async def _until_gone(stream: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
    """Wait until the reader of a stream has gone, and end the stream: an idle one would not notice."""
    with contextlib.suppress(*_GONE):
        while await stream.receive():
            pass
    scope.cancel()


def _ended(task: asyncio.Task[None]) -> None:
    """Tell of a defect: the tree goes on without its socket."""
    if not task.cancelled() and task.exception() is not None:
        log.error("control.broke", exc_info=task.exception())


def _headers(answer: Answer, kind: str = "application/json") -> list[tuple[str, str]]:
    return [("Content-Type", kind), ("Connection", "close"), *answer.headers]
