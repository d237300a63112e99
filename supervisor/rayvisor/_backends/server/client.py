"""What is asked of a server over HTTP, one question a connection, each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import h11

__all__ = ["Answer", "HttpClient", "HttpFailedError"]

_MAX_BYTES = 16 << 20
_READ_BYTES = 1 << 16


class HttpFailedError(Exception):
    """No answer came: nobody listens, it took too long, or what came is not HTTP.

    Parameters
    ----------
    what
        Was asked.
    why
        It came to nothing.
    """

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        super().__init__(f"{what}: {why}")


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The beginning of the body, for a message."""
        return self.body[:500].decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class HttpClient:
    """Talks to one server.

    Parameters
    ----------
    host, port
        Where it listens, as seen from here.
    secure
        Whether it speaks TLS. Its certificate is not checked: it is a process of ours.
    key
        Its API key, sent with each question; empty: none.
    """

    def __init__(self, host: str, port: int, *, secure: bool = False, key: str = "") -> None:
        self._host = host
        self._port = port
        self._tls: ssl.SSLContext | None = None
        if secure:
            self._tls = ssl.create_default_context()
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        self._headers = [("Host", f"{host}:{port}"), ("Connection", "close"), ("Accept", "*/*")]
        if key:
            self._headers.append(("Authorization", f"Bearer {key}"))

    async def get(self, path: str, seconds: float) -> Answer:
        """Ask for something.

        Raises
        ------
        HttpFailedError
            No answer within the deadline, or none that can be read.
        """
        return await self._ask("GET", path, None, seconds)

    async def post(self, path: str, body: Mapping[str, Any] | None, seconds: float | None) -> Answer:
        """Have something done; raises as ``get``. Without a deadline it waits as long as the server lives."""
        return await self._ask("POST", path, {} if body is None else body, seconds)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float | None
    ) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(method, path, body)
        except TimeoutError:
            raise HttpFailedError(f"{method} {path}", f"no answer within {seconds:g} s") from None
        except (OSError, h11.ProtocolError, EOFError) as error:
            raise HttpFailedError(f"{method} {path}", f"{type(error).__name__}: {error}") from None

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        headers = list(self._headers)
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        async with self._connected() as (reader, writer):
            talk = h11.Connection(h11.CLIENT)
            request = h11.Request(method=method, target=path, headers=headers)
            for event in (request, *([h11.Data(data=content)] if content else []), h11.EndOfMessage()):
                writer.write(talk.send(event) or b"")
            await writer.drain()
            return await _read(talk, reader)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            yield reader, writer
        finally:
            # Not waited for: a server that is stopped would never close its side.
            writer.transport.abort()


async def _read(talk: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    status, body = 0, bytearray()
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            talk.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_BYTES:
                raise EOFError(f"an answer of more than {_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, bytes(body))
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise EOFError("the connection was closed")
