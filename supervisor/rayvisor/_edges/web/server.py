"""The live page of one tree: HTTP on a TCP port.

The page itself contains no data and is served to every client that can reach the port; its data and its
buttons need the run's token. It offers a subset of the control socket's routes. Metrics are served without
the token, because a collector does not know the token of a run.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, cast

import anyio
import anyio.abc
import h11

from rayvisor._edges.controls import Controls
from rayvisor._edges.http.routes import Answer, RefusalError, Routes, StartTask, path_of
from rayvisor._edges.http.server import Handler, HttpServer
from rayvisor._edges.live.live import Live
from rayvisor._edges.web.auth import Authenticator, headers_by_name
from rayvisor._log import get_logger
from rayvisor._public import shown_as
from rayvisor._validation import is_whole
from rayvisor.errors import ControlSocketError, SpecError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts
from statecharts import render
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayvisor._edges.live.history import History

__all__ = ["WebPage"]

log = get_logger("rayvisor.web")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_VERBS = frozenset({"/pause", "/resume", "/restart"})
_STYLE = re.compile(r"<style>(.*?)</style>\n?", re.DOTALL)


class WebPage(HttpServer):
    """The live page of a running tree; [`Supervisor.serve_web`][rayvisor.Supervisor.serve_web] makes it.

    Parameters
    ----------
    controls
        The supervisor.
    history
        The recent history of the tree.
    port
        Port to listen on; 0 for a free one.
    host
        Address or name to listen on.
    metrics
        Whether ``/metrics`` is served, without the token.
    timeouts
        Timeouts of the server and of its live state.

    Raises
    ------
    SpecError
        If the port is invalid or the host is empty.
    """

    def __init__(
        self,
        controls: Controls,
        history: History,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        metrics: bool = True,
        timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges,
    ) -> None:
        given: tuple[object, object] = (port, host)
        if not is_whole(given[0], 0) or port >= 1 << 16:
            raise SpecError("port", port, "must be a whole number from 0 (a free one) to 65535")
        if not isinstance(given[1], str) or not host:
            raise SpecError("host", host, "must be an address or a name of this machine, such as '127.0.0.1'")
        super().__init__("rayvisor web", timeouts=timeouts)
        self.host = host
        self.port = port
        self.token = secrets.token_urlsafe(24)
        self._controls = controls
        self._metrics = metrics
        self._live = Live(controls, history, timeouts=timeouts)

    def __str__(self) -> str:
        return self.url

    @property
    def url(self) -> str:
        """URL of the page, with the token after ``#``. Every holder of it can pause and restart the tree."""
        host = self.host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            if address.is_unspecified:
                host = "127.0.0.1"
            elif isinstance(address, ipaddress.IPv6Address):
                host = f"[{host}]"
        return f"http://{host}:{self.port}/#{self.token}"

    @property
    def readers(self) -> int:
        """Number of open pages."""
        return self._live.readers

    async def visited(self) -> None:
        """Wait until the page has been opened."""
        await self._live.visited.wait()

    async def open(self) -> None:
        """Bind the port.

        Raises
        ------
        ControlSocketError
            If the port cannot be bound.
        """
        try:
            listener = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port)
        except OSError as error:
            raise ControlSocketError(f"{self.host}:{self.port}", error.strerror or str(error)) from error
        self._listeners = tuple(cast("Sequence[anyio.abc.SocketListener]", listener.listeners))
        self.port = self._listeners[0].extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - anyio's extra(), not Django's
        if not _is_loopback(self.host):
            log.warning("web.open_to_others", host=self.host, port=self.port)
        log.info("web.open", host=self.host, port=self.port)

    def handler(self, start_task: StartTask) -> Handler:
        """Return a handler that answers authenticated requests."""
        start_task(self._live.follow)
        authenticator, routes = (
            Authenticator(self.token, self.host),
            Routes(self._controls, start_task, timeouts=self._timeouts),
        )

        async def answer(request: h11.Request, body: bytes) -> Answer:
            try:
                plain = await self._answer(authenticator, routes, request, body)
            except RefusalError as refusal:
                plain = refusal.answer
            return replace(plain, headers=(*plain.headers, *_SECURITY_HEADERS))

        return answer

    async def _answer(
        self, authenticator: Authenticator, routes: Routes, request: h11.Request, body: bytes
    ) -> Answer:
        headers = headers_by_name(request.headers)
        method = request.method.decode("ascii")
        target = request.target.decode("ascii", "replace")
        path = path_of(target).removeprefix("/v1")
        if path in _VERBS:
            authenticator.authenticate(headers, acts=True)
            return await routes.answer(method, target, body)
        if method != "GET":
            authenticator.check_host(headers)
            raise RefusalError(405, "WrongMethod", f"{path[:200]} takes GET, not {method[:20]}", Allow="GET")
        if path == "/events":
            authenticator.authenticate(headers, acts=False)
            return self._stream_to(headers)
        authenticator.check_host(headers)
        if path == "/metrics" and self._metrics:
            return await routes.answer(method, path, b"")
        return _file(path)

    def _stream_to(self, headers: Mapping[str, str]) -> Answer:
        lines = self._live.events(headers.get("last-event-id", ""))
        return Answer(200, lines=lines, kind="text/event-stream", timeout=self._timeouts.write)


def _file(path: str) -> Answer:
    found = _FILES.get(path)
    if found is not None:
        name, kind = found
        return Answer(200, content=_packaged(name), kind=kind)
    if path == "/chart.css":
        style, _ = _chart("engine")  # the same for all charts
        return Answer(200, content=style, kind="text/css; charset=utf-8")
    name = path.removeprefix("/chart/").removesuffix(".svg")
    if name in CHARTS and path == f"/chart/{name}.svg":
        return Answer(200, content=_chart(name)[1], kind="image/svg+xml")
    raise RefusalError(404, "UnknownRoute", f"no such route: {path[:200]}")


@cache
def _packaged(name: str) -> bytes:
    return files("rayvisor._edges.web").joinpath(name).read_bytes()


@cache
def _chart(name: str) -> tuple[bytes, bytes]:
    """Return style and picture of a chart separately; the page's policy forbids styles inside a picture."""
    picture = render(CHARTS[name], "svg")
    found = _STYLE.search(picture)
    return (found[1] if found else "").encode(), _STYLE.sub("", picture).encode()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


shown_as("rayvisor", WebPage)
