"""The port of a server: chosen here, and reserved until the server listens.

A free port can be taken by any process. The system does not give a port to which a socket is bound to a
process that asks for any port. With ``SO_REUSEADDR`` on both sockets the server can still bind to it, as long
as only the server listens. So this process keeps a socket bound to the port for as long as the server lives.
"""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

__all__ = ["PortTakenError", "hold", "is_listener"]


class PortTakenError(OSError):
    """Another process listens at the port of a server."""


def hold(host: str, port: int, before: int = 0) -> tuple[socket.socket, int]:
    """Reserve a port.

    Parameters
    ----------
    host
        The address that the server will listen at.
    port
        The port; 0 for any free one.
    before
        The preferred port if any will do: the one of the server's last incarnation.

    Returns
    -------
    tuple
        The socket that reserves the port, to be closed by the caller, and the port.

    Raises
    ------
    PortTakenError
        The requested port is taken; the message names the process that listens there, if it is visible.
    OSError
        This machine has no such address.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    for candidate in (port,) if port else (before, 0):
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((address[0], candidate))
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise OSError(f"host={host!r}, port={candidate}: {error.strerror}") from None
            if port:
                raise PortTakenError(_taken(host, port)) from None
            continue
        return held, int(held.getsockname()[1])
    raise OSError(f"host={host!r}: no port is free")


def is_listener(port: int, pids: frozenset[int]) -> bool:
    """Return whether one of these processes listens at a port; True as well if that is not visible."""
    try:
        listening = _listeners(port)
    except (psutil.Error, OSError):
        return True
    return not listening or any(pid is None or pid in pids for pid in listening)


def _listeners(port: int) -> list[int | None]:
    """Return the pids that listen at a port; None for a process that is not visible."""
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
    return f"port {port} of {host} is taken{by}: end that process, or set another port, or port=0 for any"
