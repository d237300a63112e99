"""The other end of the control socket: what the commands use. It blocks."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rayvisor._edges.sockets import default_folder, is_listening, live_sockets
from rayvisor.errors import ControlSocketError, RayvisorError

__all__ = ["ControlClient", "ControlRefusedError", "LiveMessage", "find"]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 900.0
"""How long an answer may take unless the call says otherwise: a restart waits for its engine."""


class ControlRefusedError(RayvisorError):
    """The tree answered with an error.

    Parameters
    ----------
    status
        HTTP status.
    kind
        Name of the error there.
    message
        Its message.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status = status
        self.kind = kind
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """One message of ``/live``: ``state``, with what has changed, ``over``, or ``there``: a sign of life."""

    id: str
    kind: str
    data: dict[str, Any]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, seconds: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        """Connect; from then on only the answer is waited for."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        connection.settimeout(self._seconds)
        self.sock = connection


class ControlClient:
    """Talks to one tree.

    Parameters
    ----------
    path
        Of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, route: str, seconds: float = 30.0, **query: str) -> Any:
        """Ask for something.

        Raises
        ------
        ControlSocketError
            Nobody answers there, or not in time.
        ControlRefusedError
            The answer is an error.
        """
        target = f"{route}?{urlencode(query)}" if query else route
        return self._exchange("GET", target, None, seconds)

    def post(self, route: str, body: dict[str, Any], seconds: float = ANSWER_SECONDS) -> Any:
        """Ask for something to be done, and wait until it is; raises as ``get``."""
        return self._exchange("POST", route, body, seconds)

    def events(self) -> Iterator[dict[str, Any]]:
        """Everything that happens from now on, until the tree has ended; raises as ``get``."""
        connection = _UnixConnection(self.path, None)
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

    def live(self, last: str, silence: float) -> Iterator[LiveMessage]:
        """What a tree tells those who look on, until it has ended; raises as ``get``.

        Parameters
        ----------
        last
            Id of the last message that is known; empty: everything is told anew.
        silence
            Seconds without a word after which the tree counts as not handler.
        """
        connection = _UnixConnection(self.path, silence)
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
            raise self._broken(error, silence) from error
        finally:
            connection.close()

    def wait_until_gone(self, seconds: float) -> bool:
        """Wait until nobody answers there any more."""
        late = time.monotonic() + seconds
        while is_listening(self.path):
            if time.monotonic() >= late:
                return False
            time.sleep(0.05)
        return True

    def _exchange(self, method: str, target: str, body: dict[str, Any] | None, seconds: float) -> Any:
        connection = _UnixConnection(self.path, seconds)
        try:
            response = self._ask(connection, method, target, body)
            content = response.read()
            kind = response.getheader("Content-Type", "")
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, seconds) from error
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

    def _broken(self, error: Exception, seconds: float | None) -> ControlSocketError:
        if isinstance(error, FileNotFoundError):
            why = "there is no such socket; `rayvisor run` and Supervisor(control=True) make one"
        elif isinstance(error, ConnectionRefusedError):
            why = "nobody listens there any more: the process that made it has ended"
        elif isinstance(error, TimeoutError):
            why = f"no answer within {seconds or CONNECT_SECONDS:g} s"
        elif isinstance(error, http.client.HTTPException | ConnectionError):
            why = f"the connection broke before an answer came ({type(error).__name__})"
        else:
            why = getattr(error, "strerror", None) or str(error)
        return ControlSocketError(str(self.path), why)


def _refused(status: int, content: bytes) -> ControlRefusedError:
    try:
        told = json.loads(content)["error"]
        return ControlRefusedError(status, str(told["type"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        return ControlRefusedError(
            status, "Unknown", content.decode(errors="replace")[:1000] or f"HTTP {status}"
        )


def find(socket: Path | None = None) -> ControlClient:
    """The tree at this socket; without one, the one tree of this user that runs.

    Raises
    ------
    ControlSocketError
        None does, or several do: the message lists them.
    """
    if socket is not None:
        return ControlClient(socket)
    folder = default_folder()
    found = live_sockets(folder)
    if len(found) == 1:
        return ControlClient(found[0])
    if not found:
        raise ControlSocketError(
            str(folder), "no tree runs here; `rayvisor run` and Supervisor(control=True) make a socket in it"
        )
    lines = "".join(f"\n  --socket {path}  ({_described(path)})" for path in found)
    raise ControlSocketError(str(folder), f"{len(found)} trees run; name one of them:{lines}")


def _described(path: Path) -> str:
    try:
        tree = ControlClient(path).get("/v1/status", 2.0)["tree"]
    except RayvisorError as error:
        return str(error)
    children = ", ".join(child["path"] for child in tree["children"]) or "no children"
    return f"{tree['state'].lower()}: {children}"
