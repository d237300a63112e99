"""The blocking client of the control socket, used by the commands."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rayvisor._edges.live.text import escaped
from rayvisor._edges.sockets import default_folder, is_listening, live_sockets
from rayvisor.errors import ControlSocketError, RayvisorError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

__all__ = ["ControlClient", "ControlRefusedError", "LiveMessage", "find"]

_CREDENTIALS = struct.Struct("3i")
"""The answer of SO_PEERCRED: pid, user and group of the process that listens."""


class ControlRefusedError(RayvisorError):
    """The tree answered with an error.

    Parameters
    ----------
    status
        HTTP status.
    kind
        Type of the error.
    message
        Message of the error.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status = status
        self.kind = kind
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """One message of ``/live``: ``state`` with changes, ``over`` at the end, or the heartbeat ``there``."""

    id: str
    kind: str
    data: dict[str, Any]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, connect_timeout: float, answer_timeout: float | None) -> None:
        super().__init__("localhost")
        self._connect_timeout = connect_timeout
        self._path = path
        self._answer_timeout = answer_timeout

    def connect(self) -> None:
        """Connect, and set the timeout for the answer."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._connect_timeout)
        try:
            connection.connect(str(self._path))
            self._check_owner(connection)
        except BaseException:
            connection.close()
            raise
        connection.settimeout(self._answer_timeout)
        self.sock = connection

    def _check_owner(self, connection: socket.socket) -> None:
        """Raise an error if another user listens, or owns the socket: a forged tree gets no command."""
        answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, peer, _ = _CREDENTIALS.unpack(answer)
        # A folder of another user's could show a link to a socket of ours.
        for user in (peer, self._path.lstat().st_uid, self._path.stat().st_uid):
            if user != os.geteuid():
                raise ControlSocketError(
                    str(self._path), f"belongs to another user (uid {user}); run the command as that user"
                )


class ControlClient:
    """A client of one tree.

    Parameters
    ----------
    path
        Path of the tree's socket.
    timeouts
        How long connecting, and an answer, may take.
    """

    def __init__(self, path: Path, *, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges) -> None:
        self.path = path
        self._timeouts = timeouts

    def get(self, route: str, timeout: float = 30.0, **query: str) -> Any:
        """Send a query and return the answer.

        Raises
        ------
        ControlSocketError
            If there is no answer within ``timeout`` seconds.
        ControlRefusedError
            If the answer is an error.
        """
        target = f"{route}?{urlencode(query)}" if query else route
        return self._exchange("GET", target, None, timeout)

    def post(self, route: str, body: dict[str, Any], timeout: float | None = None) -> Any:
        """Send a command and wait for its result, by default 15 minutes at most; raises as ``get``."""
        return self._exchange("POST", route, body, self._timeouts.answer if timeout is None else timeout)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield every event from now on until the tree has ended; raises as ``get``."""
        connection = _UnixConnection(self.path, self._timeouts.connect, None)
        try:
            response = self._ask(connection, "GET", "/v1/events", None)
            if response.status != http.client.OK:
                raise _refused(response.status, response.read())
            while line := response.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, None) from error
        finally:
            connection.close()

    def live(self, last: str, timeout: float) -> Iterator[LiveMessage]:
        """Yield the messages of ``/live`` until the tree has ended; raises as ``get``.

        Parameters
        ----------
        last
            Id of the last known message; empty for the complete state.
        timeout
            Maximum time, in seconds, between two messages.
        """
        connection = _UnixConnection(self.path, self._timeouts.connect, timeout)
        try:
            response = self._ask(connection, "GET", f"/v1/live?{urlencode({'last': last})}", None)
            if response.status != http.client.OK:
                raise _refused(response.status, response.read())
            fields: dict[str, str] = {}
            while line := response.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                    continue
                data = json.loads(fields.get("data", "{}"))
                yield LiveMessage(fields.get("id", ""), fields.get("event", "there"), data)
                fields = {}
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, timeout) from error
        finally:
            connection.close()

    def wait_until_gone(self, timeout: float) -> bool:
        """Wait until no process listens at the socket; return False after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while is_listening(self.path, self._timeouts.probe):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def _exchange(self, method: str, target: str, body: dict[str, Any] | None, timeout: float) -> Any:
        connection = _UnixConnection(self.path, self._timeouts.connect, timeout)
        try:
            response = self._ask(connection, method, target, body)
            content = response.read()
            kind = response.getheader("Content-Type", "")
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, timeout) from error
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise _refused(response.status, content)
        return json.loads(content) if kind == "application/json" else content.decode()

    @staticmethod
    def _ask(
        connection: _UnixConnection, method: str, target: str, body: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body)
        connection.request(method, target, content, {"Content-Type": "application/json"} if content else {})
        return connection.getresponse()

    def _broken(self, error: Exception, timeout: float | None) -> ControlSocketError:
        if isinstance(error, FileNotFoundError):
            why = "no such socket; `rayvisor run` and Supervisor(control=True) create one"
        elif isinstance(error, ConnectionRefusedError):
            why = "no process listens there any more; the process that created it has ended"
        elif isinstance(error, TimeoutError):
            why = f"no answer within {timeout or self._timeouts.connect:g} s"
        elif isinstance(error, http.client.HTTPException | ConnectionError):
            why = f"the connection broke before the answer arrived ({type(error).__name__})"
        else:
            why = getattr(error, "strerror", None) or str(error)
        return ControlSocketError(str(self.path), why)


def _refused(status: int, content: bytes) -> ControlRefusedError:
    try:
        error = json.loads(content)["error"]
        return ControlRefusedError(status, str(error["type"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return ControlRefusedError(
            status, "Unknown", content.decode(errors="replace")[:1000] or f"HTTP {status}"
        )


def find(socket: Path | None = None, *, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges) -> ControlClient:
    """Return the client of the tree at a socket; without a socket, of this user's only running tree.

    Raises
    ------
    ControlSocketError
        If no tree runs, or several do; the message lists them.
    """
    if socket is not None:
        return ControlClient(socket, timeouts=timeouts)
    folder = default_folder()
    found = live_sockets(folder, timeouts=timeouts)
    if len(found) == 1:
        return ControlClient(found[0], timeouts=timeouts)
    if not found:
        raise ControlSocketError(
            str(folder), "no tree runs; `rayvisor run` and Supervisor(control=True) create a socket here"
        )
    lines = "".join(
        "\n" + escaped(f"  --socket {path}  ({_described(ControlClient(path, timeouts=timeouts))})")
        for path in found
    )
    raise ControlSocketError(str(folder), f"{len(found)} trees run; choose one of them:{lines}")


def _described(client: ControlClient) -> str:
    try:
        tree = client.get("/v1/status", 2.0)["tree"]
    except RayvisorError as error:
        return str(error)
    children = ", ".join(child["path"] for child in tree["children"]) or "no children"
    return f"{tree['state'].lower()}: {children}"
