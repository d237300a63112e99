"""The PUB socket: bound before the tree starts, fed as things happen, never waited for.

A subscriber that does not read fills its own queue of ``HIGH_WATER`` messages and no more; what comes on top
is dropped for it alone. It sees that by the numbers of its topic; that its queue ran full is counted, and
said to the log and in all further messages. ZeroMQ does not tell how many messages that cost whom.
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

if TYPE_CHECKING:
    import zmq

    from rayvisor.records import Record

__all__ = ["Publisher"]

log = get_logger("rayvisor.publish")

LOOPBACK = "tcp://127.0.0.1:0"
HIGH_WATER = 1000
"""Messages that wait for one subscriber."""
LINGER_MILLISECONDS = 1000
"""How long the end waits for the last messages to be on their way."""
WARN_INTERVAL_SECONDS = 10.0
"""Drops are logged at most so often."""
LONGEST_REQUEST = 1024
"""Bytes of what a subscriber may send: the name of a topic."""

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
        How many messages wait for one subscriber.

    Raises
    ------
    SpecError
        It is no such address.
    """

    def __init__(self, where: object, *, high_water: int = HIGH_WATER) -> None:
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
            pyzmq is not installed, or the address cannot be had.
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
                claim_of_path = claim(Path(ipc[1]))
                try:
                    # libzmq would take over a socket that is in use, and delete whatever file is there.
                    await anyio.to_thread.run_sync(claimed.enter_context, claim_of_path)
                except ControlSocketError as error:
                    raise PublishError(self._wanted, error.reason) from None
            self._context = context = zmq.Context()
            self._socket = made = context.socket(zmq.PUB)
            made.sndhwm = self._high_water
            made.linger = LINGER_MILLISECONDS
            made.maxmsgsize = LONGEST_REQUEST
            made.ipv6 = "[" in self._wanted
            try:
                made.bind(self._wanted)
            except zmq.ZMQError as error:
                await self.end()
                way = "name another, or port 0 for a free one" if ipc is None else "name another path"
                raise PublishError(self._wanted, f"cannot be bound: {error.strerror}; {way}") from error
            self.address = made.get_string(zmq.LAST_ENDPOINT)
            if ipc is not None:
                self._file = Path(ipc[1]), _identity(Path(ipc[1]))
        log.info("publish.open", address=self.address)
        if ipc is None and not _loopback(self._wanted):
            log.warning(
                "publish.exposed", address=self.address, why="whoever reaches this port can read every event"
            )

    def put(self, record: Record) -> None:
        """Publish a record. Never waits, and never raises: the tree does not depend on it."""
        if self._socket is None:
            return
        try:
            self._send(self._socket, record)
        except Exception:
            log.exception("publish.failed", record=type(record).__name__)

    def _send(self, socket: zmq.Socket[bytes], record: Record) -> None:
        import zmq

        parts = self._messages.of(record, time.time() - time.monotonic(), self.overflows)
        # A queue that runs full is an error first, so that it is known of; then only its owner goes without,
        # silently, until it reads again.
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
        if self.overflows == 1 or now - self._warned_at >= WARN_INTERVAL_SECONDS:
            self._warned_at = now
            log.warning(
                "publish.overflow",
                times=self.overflows,
                topic=topic.decode(),
                why="a subscriber does not read",
            )

    async def end(self) -> None:
        """Close: the last messages get a second."""
        socket, self._socket = self._socket, None
        context, self._context = self._context, None
        if self.overflows:
            log.warning("publish.overflow", times=self.overflows, why="subscribers did not read; this is all")
        if socket is not None:
            socket.close()
        if context is not None:
            # Bounded by the linger time of its only socket.
            await anyio.to_thread.run_sync(context.term, abandon_on_cancel=True)
        self._remove_file()

    def _remove_file(self) -> None:
        """Remove what libzmq leaves behind, unless somebody has put another one in its place."""
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
        "must be True, or an address: 'tcp://127.0.0.1:5570' (port 0: a free one), 'ipc:///run/user/1000/a.sock'",
    )


def _loopback(address: str) -> bool:
    found = _TCP.fullmatch(address)
    host = "" if found is None else found[1].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
