"""The port of a server: chosen, and kept free for it until it listens.

A port that is merely free is anybody's. One to which a socket is bound is not given to anybody who asks for
just any; and with ``SO_REUSEADDR`` on both sides the server can bind to it as well, as long as only it
listens. So a port is held here for as long as its server lives.
"""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

__all__ = ["PortTakenError", "hold", "listener_of"]


class PortTakenError(OSError):
    """Somebody else listens where a server should."""


def hold(host: str, port: int, before: int = 0) -> tuple[socket.socket, int]:
    """Hold a port.

    Parameters
    ----------
    host
        The address that the server will listen at.
    port
        The port; 0: any that is free.
    before
        Which one to take if any will do and this one is free: the server's own before.

    Returns
    -------
    tuple
        What holds it, to be closed, and which one it is.

    Raises
    ------
    PortTakenError
        The port that was asked for is taken; the message says by whom, where that can be seen.
    OSError
        There is no such address here.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    for wanted in (port,) if port else (before, 0):
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((address[0], wanted))
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise OSError(f"host={host!r}, port={wanted}: {error.strerror}") from None
            if port:
                raise PortTakenError(_taken(host, port)) from None
            continue
        return held, int(held.getsockname()[1])
    raise OSError(f"host={host!r}: no port is free")


def listener_of(port: int, pids: frozenset[int]) -> bool:
    """Whether one of these processes listens at a port; True as well where that cannot be seen."""
    try:
        listening = _listeners(port)
    except (psutil.Error, OSError):
        return True
    return not listening or any(pid is None or pid in pids for pid in listening)


def _listeners(port: int) -> list[int | None]:
    """Who listens at a port; None for one whose process cannot be seen."""
    return [
        each.pid
        for each in psutil.net_connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    ]


def _taken(host: str, port: int) -> str:
    by = ""
    with contextlib.suppress(psutil.Error, OSError):
        for pid in _listeners(port):
            if pid is not None:
                by = f" by {psutil.Process(pid).name()} (pid {pid})"
    return f"port {port} of {host} is taken{by}: end what listens there, give another port, or port=0 for any"
