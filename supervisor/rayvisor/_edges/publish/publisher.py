"""The PUB socket: bound before the tree starts, written without ever waiting.

A subscriber that does not read fills its own queue of ``HIGH_WATER`` messages; further messages are dropped
for that subscriber only. It notices this by the sequence numbers of its topic. Overflows are counted, logged,
and reported in all further messages. ZeroMQ does not reveal how many messages a subscriber missed.
"""

from __future__ import annotations

import ipaddress
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio.to_thread

from rayvisor._edges.publish.messages import Messages
from rayvisor._edges.sockets import claim
from rayvisor._log import get_logger
from rayvisor.errors import ControlSocketError, PublishError, SpecError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

if TYPE_CHECKING:
    import zmq

    from rayvisor.records import Record

__all__ = ["Publisher"]

log = get_logger("rayvisor.publish")

LOOPBACK = "tcp://127.0.0.1:0"
HIGH_WATER = 1000
"""Maximum length of a subscriber's queue, in messages."""
LONGEST_REQUEST = 1024
"""Maximum size, in bytes, of a message from a subscriber (the name of a topic)."""

_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\*|\d{1,5})")
_IPC = re.compile(r"ipc://([^@\0][^\0]*)")
_PORTS = 65536


class Publisher:
    """Publishes records.

    Parameters
    ----------
    where
        ``tcp://HOST:PORT`` or ``ipc://PATH``; True for a free port of the loopback interface.
    high_water
        Maximum length of a subscriber's queue, in messages.
    timeouts
        How long the end waits for the last messages, and how often overflows are logged.

    Raises
    ------
    SpecError
        If it is not such an address.
    """

    def __init__(
        self,
        where: object,
        *,
        high_water: int = HIGH_WATER,
        timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges,
    ) -> None:
        self._timeouts = timeouts
        self._wanted = _checked(where)
        self._high_water = high_water
        self._messages = Messages(uuid4().hex[:12])
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._warned_at = 0.0
        self._file: tuple[Path, tuple[int, int]] | None = None
        self.overflows = 0
        self.address: str | None = None

    async def start(self) -> None:
        """Bind the socket.

        Raises
        ------
        PublishError
            If pyzmq is not installed or the address cannot be bound.
        """
        try:
            import zmq
        except ImportError as error:
            raise PublishError(
                self._wanted, "needs pyzmq, which is not installed: pip install 'rayvisor[publish]'"
            ) from error
        ipc = _IPC.fullmatch(self._wanted)
        with ExitStack() as claimed:
            if ipc is not None:
                claim_of_path = claim(Path(ipc[1]), timeouts=self._timeouts)
                try:
                    # libzmq would take over a socket in use, and delete any file at the path.
                    await anyio.to_thread.run_sync(claimed.enter_context, claim_of_path)
                except ControlSocketError as error:
                    raise PublishError(self._wanted, error.reason) from None
            self._context = context = zmq.Context()
            self._socket = made = context.socket(zmq.PUB)
            made.sndhwm = self._high_water
            made.linger = round(self._timeouts.publish_linger * 1000)
            made.maxmsgsize = LONGEST_REQUEST
            made.ipv6 = "[" in self._wanted
            try:
                made.bind(self._wanted)
            except zmq.ZMQError as error:
                await self.end()
                remedy = (
                    "use another address, or port 0 for a free one" if ipc is None else "use another path"
                )
                raise PublishError(self._wanted, f"cannot be bound: {error.strerror}; {remedy}") from error
            self.address = made.get_string(zmq.LAST_ENDPOINT)
            if ipc is not None:
                self._file = Path(ipc[1]), _identity(Path(ipc[1]))
        log.info("publish.open", address=self.address)
        if ipc is None and not _loopback(self._wanted):
            log.warning(
                "publish.exposed", address=self.address, why="every client of this port can read all events"
            )

    def put(self, record: Record) -> None:
        """Publish a record. Never waits and never raises, since the tree does not depend on it."""
        if self._socket is None:
            return
        try:
            self._send(self._socket, record)
        except Exception:
            log.exception("publish.failed", record=type(record).__name__)

    def _send(self, socket: zmq.Socket[bytes], record: Record) -> None:
        import zmq

        parts = self._messages.of(record, time.time() - time.monotonic(), self.overflows)
        # With NODROP a full queue raises, so that it is noticed. Without it the message is dropped for that
        # subscriber only.
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            self.overflows += 1
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            socket.send_multipart(parts, zmq.NOBLOCK)
            self._warn_overflow(parts[0])

    def _warn_overflow(self, topic: bytes) -> None:
        now = time.monotonic()
        if self.overflows == 1 or now - self._warned_at >= self._timeouts.publish_report:
            self._warned_at = now
            log.warning(
                "publish.overflow",
                times=self.overflows,
                topic=topic.decode(),
                why="a subscriber does not read",
            )

    async def end(self) -> None:
        """Close the socket; the last messages get a short time (1 s) to be sent."""
        socket, self._socket = self._socket, None
        context, self._context = self._context, None
        if self.overflows:
            log.warning("publish.overflow", times=self.overflows, why="total; subscribers did not read")
        if socket is not None:
            socket.close()
        if context is not None:
            # Takes at most the linger time of its only socket.
            await anyio.to_thread.run_sync(context.term, abandon_on_cancel=True)
        self._remove_file()

    def _remove_file(self) -> None:
        """Remove the file that libzmq leaves behind, unless another file has replaced it."""
        file, self._file = self._file, None
        if file is None:
            return
        path, own = file
        try:
            if _identity(path) == own:
                path.unlink()
        except OSError as error:
            log.warning("publish.left", socket=str(path), why=str(error))


def _identity(path: Path) -> tuple[int, int]:
    about = path.lstat()
    return about.st_dev, about.st_ino


def _checked(where: Any) -> str:
    if where is True:
        return LOOPBACK
    if isinstance(where, str):
        tcp = _TCP.fullmatch(where)
        if _IPC.fullmatch(where) or (tcp is not None and (tcp[2] == "*" or int(tcp[2]) < _PORTS)):
            return where
    raise SpecError(
        "publish",
        where,
        "must be True or an address such as 'tcp://127.0.0.1:5570' (port 0 for a free one) or "
        "'ipc:///run/user/1000/a.sock'",
    )


def _loopback(address: str) -> bool:
    found = _TCP.fullmatch(address)
    host = "" if found is None else found[1].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
