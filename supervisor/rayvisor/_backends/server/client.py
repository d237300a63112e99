"""An HTTP client for one server: one request per connection, each with a timeout."""

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
    """No response arrived: nothing listens, it took too long, or the response is not HTTP.

    Parameters
    ----------
    request
        Method and path.
    reason
        Why it failed.
    """

    def __init__(self, request: str, reason: str) -> None:
        self.request = request
        super().__init__(f"{request}: {reason}")


class Answer(NamedTuple):
    """A response."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The first 500 bytes of the body, for a message."""
        return self.body[:500].decode(errors="replace")

    def json(self) -> Any:
        """Return the body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class HttpClient:
    """Sends requests to one server.

    Parameters
    ----------
    host, port
        Its address, as seen from this process.
    secure
        Whether it uses TLS. Its certificate is not verified, since this process has started it.
    key
        Its API key, sent with each request; empty for none.
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

    async def get(self, path: str, timeout: float) -> Answer:
        """Send a GET request.

        Parameters
        ----------
        path
            Path and query.
        timeout
            Seconds for the whole exchange.

        Raises
        ------
        HttpFailedError
            No response arrived within the timeout, or none that can be read.
        """
        return await self._send("GET", path, None, timeout)

    async def post(self, path: str, body: Mapping[str, Any] | None, timeout: float | None) -> Answer:
        """Send a POST request; it raises as ``get`` does.

        Parameters
        ----------
        path
            Path and query.
        body
            Sent as JSON; None for an empty object.
        timeout
            Seconds for the whole exchange; None to wait as long as the server lives.
        """
        return await self._send("POST", path, {} if body is None else body, timeout)

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float | None
    ) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(method, path, body)
        except TimeoutError:
            raise HttpFailedError(f"{method} {path}", f"no response within {timeout:g} s") from None
        except (OSError, h11.ProtocolError, EOFError) as error:
            raise HttpFailedError(f"{method} {path}", f"{type(error).__name__}: {error}") from None

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        headers = list(self._headers)
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        async with self._connected() as (reader, writer):
            http = h11.Connection(h11.CLIENT)
            request = h11.Request(method=method, target=path, headers=headers)
            for event in (request, *([h11.Data(data=content)] if content else []), h11.EndOfMessage()):
                writer.write(http.send(event) or b"")
            await writer.drain()
            return await _read(http, reader)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            yield reader, writer
        finally:
            # Aborted, not closed: a server that is stopped would never close its side.
            writer.transport.abort()


async def _read(http: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    status, body = 0, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_BYTES:
                raise EOFError(f"a response of more than {_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, bytes(body))
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise EOFError("the connection was closed")
