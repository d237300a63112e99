"""Shared by tests of the live page: a raw HTTP client that reads event streams, and trees with a page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import h11

import rayvisor as rv


class Browser:
    """Sends requests like a browser that has opened the URL of a page."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port, self.token = parts.hostname, parts.port, parts.fragment

    @property
    def own(self) -> dict[str, str]:
        """The headers of a request from the page's own script."""
        return {
            "Host": f"{self.host}:{self.port}",
            "Origin": f"http://{self.host}:{self.port}",
            "X-Rayvisor-Token": self.token,
        }

    async def ask(
        self, target: str, headers: dict[str, str] | None = None, *, method: str = "GET", body: object = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request; return status, headers and body of the answer."""
        content = b"" if body is None else json.dumps(body).encode()
        told = {**(self.own if headers is None else headers), "Content-Length": str(len(content))}
        http = h11.Connection(h11.CLIENT)
        found, got = None, b""
        with anyio.fail_after(60.0):
            async with await anyio.connect_tcp(self.host, self.port) as stream:
                request = h11.Request(method=method, target=target, headers=list(told.items()))
                await stream.send(http.send(request) or b"")
                await stream.send(
                    (http.send(h11.Data(content)) or b"") + (http.send(h11.EndOfMessage()) or b"")
                )
                while True:
                    event = http.next_event()
                    if event is h11.NEED_DATA:
                        try:
                            http.receive_data(await stream.receive())
                        except anyio.EndOfStream:
                            http.receive_data(b"")
                    elif isinstance(event, h11.Response):
                        found = event
                    elif isinstance(event, h11.Data):
                        got += event.data
                    else:
                        break
        assert found is not None
        names = {name.decode(): value.decode() for name, value in found.headers}
        return found.status_code, names, got

    async def post(self, verb: str, **body: object) -> tuple[int, Any]:
        """Press a button."""
        status, _, content = await self.ask(f"/{verb}", method="POST", body=body)
        return status, json.loads(content)

    @asynccontextmanager
    async def reading(self, last: str = "") -> AsyncIterator[Reader]:
        """Read the event stream, from after the message with the id ``last``."""
        async with await anyio.connect_tcp(self.host, self.port) as stream:
            headers = {**self.own, **({"Last-Event-ID": last} if last else {})}
            lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
            await stream.send(f"GET /events HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
            yield Reader(stream)


class Reader:
    """The state of a page after the messages it has read."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method="GET", target="/events", headers=[("Host", "x")]))
        self._http.send(h11.EndOfMessage())
        self._rest = ""
        self.last = ""
        self.over = False
        self.silences = 0
        self.messages: list[dict[str, Any]] = []
        self.nodes: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.faults: dict[int, dict[str, Any]] = {}

    async def until(self, condition: Any, seconds: float = 60.0) -> None:
        """Read until a condition holds."""
        with anyio.fail_after(seconds):
            while not condition(self):
                await self._more()

    async def _more(self) -> None:
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive())
        elif isinstance(event, h11.Data):
            *parts, self._rest = (self._rest + event.data.decode()).split("\n\n")
            self.silences += parts.count(": still there")
            for part in parts:
                self._take(dict(line.split(": ", 1) for line in part.splitlines()))
        elif isinstance(event, h11.EndOfMessage):
            raise AssertionError("the stream has ended")

    def _take(self, fields: dict[str, str]) -> None:
        if fields.get("event") == "over":
            self.over = True
        if fields.get("event") != "state":
            return
        told = json.loads(fields["data"])
        self.last = fields["id"]
        self.messages.append(told)
        if told["full"]:
            self.nodes, self.faults = {}, {}
        self.nodes |= {node["path"]: node for node in told["nodes"]}
        self.order = told.get("order", self.order)
        self.nodes = {path: self.nodes[path] for path in self.order}
        self.faults |= {fault["id"]: fault for fault in told["faults"]}


async def idle() -> None:
    await anyio.sleep_forever()


@asynccontextmanager
async def tree(
    *children: rv.ChildSpec, timeouts: rv.Timeouts | None = None, **flags: Any
) -> AsyncIterator[tuple[rv.Supervisor, Browser]]:
    """Run a tree without Ray that has a page."""
    spec = rv.SupervisorSpec(**{"intensity": 3, "period": 900.0, **flags}, children=children)
    async with rv.Supervisor(spec, local=True, seed=7, handle_signals=False, timeouts=timeouts) as sup:
        page = await sup.serve_web()
        yield sup, Browser(page.url)
