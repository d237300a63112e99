"""The control socket of one tree: HTTP/1.1 on a Unix socket."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.to_thread
import h11

from rayvisor._edges.controls import Controls
from rayvisor._edges.http.routes import Answer, Routes, StartTask
from rayvisor._edges.http.server import Handler, HttpServer
from rayvisor._edges.live.live import Live
from rayvisor._edges.sockets import claim, free_path
from rayvisor._log import get_logger
from rayvisor.errors import ControlSocketError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

if TYPE_CHECKING:
    from rayvisor._edges.live.history import History

__all__ = ["ControlServer"]

log = get_logger("rayvisor.control")


class ControlServer(HttpServer):
    """Serves one socket.

    Parameters
    ----------
    controls
        The supervisor.
    path
        Path of the socket; True for one that `find` finds.
    history
        The recent history of the tree.
    timeouts
        Timeouts of the server, of its live state, and of the socket.
    """

    def __init__(
        self,
        controls: Controls,
        path: str | os.PathLike[str] | Literal[True],
        history: History,
        *,
        timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges,
    ) -> None:
        super().__init__("rayvisor control", timeouts=timeouts)
        self.path = free_path(timeouts=timeouts) if path is True else Path(path).absolute()
        self._controls = controls
        self._history = history
        self._own: tuple[int, int] | None = None
        self._live: Live | None = None

    def handler(self, start_task: StartTask) -> Handler:
        """Return a handler for all routes, without authentication: only the user can open the socket."""
        live = self._live or Live(self._controls, self._history, timeouts=self._timeouts)
        start_task(live.follow)
        routes = Routes(self._controls, start_task, live.events, timeouts=self._timeouts)

        async def answer(request: h11.Request, body: bytes) -> Answer:
            return await routes.answer(
                request.method.decode("ascii"), request.target.decode("ascii", "replace"), body
            )

        return answer

    async def open(self) -> None:
        """Bind the socket.

        Raises
        ------
        ControlSocketError
            If the socket cannot be bound, see `claim`.
        """
        with ExitStack() as claimed:
            # In a thread: it reads files, and may wait for other processes.
            await anyio.to_thread.run_sync(claimed.enter_context, claim(self.path, timeouts=self._timeouts))
            try:
                self._listeners = (await _listen(self.path),)
                about = self.path.lstat()
            except OSError as error:
                raise ControlSocketError(str(self.path), error.strerror or str(error)) from error
        self._own = (about.st_dev, about.st_ino)
        self._live = Live(self._controls, self._history, timeouts=self._timeouts)
        log.info("control.open", socket=str(self.path))

    def close(self) -> None:
        """Stop accepting connections; open ones get a short time to finish."""
        super().close()
        own, self._own = self._own, None
        if own is None:
            return
        try:
            about = self.path.lstat()
            if (about.st_dev, about.st_ino) == own:  # not if another file has replaced it
                self.path.unlink()
        except OSError as error:
            log.warning("control.left", socket=str(self.path), why=str(error))


async def _listen(path: Path) -> anyio.abc.SocketListener:
    """Listen under another name of the same length first, so that a visible socket is always listening."""
    aside = path.with_name(path.name[:-1] + ("~" if path.name[-1] != "~" else "_"))
    try:
        listener = await anyio.create_unix_listener(aside, mode=0o600)
    except anyio.get_cancelled_exc_class():
        aside.unlink(missing_ok=True)
        raise
    try:
        aside.rename(path)
    except OSError:
        await listener.aclose()
        aside.unlink(missing_ok=True)
        raise
    return listener
