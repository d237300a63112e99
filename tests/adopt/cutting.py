"""How Ray is made to say ActorUnavailableError: its connection to an actor's process is shut down."""

from __future__ import annotations

import socket

import psutil

__all__ = ["cut"]


def cut(pid: int) -> int:
    """Shut down the connections between this process and another one; returns how many there were.

    Ray makes new ones when there is something to say; calls that are under way raise ActorUnavailableError.
    """
    theirs = {(c.laddr, c.raddr) for c in psutil.Process(pid).net_connections("inet")}
    count = 0
    for connection in psutil.Process().net_connections("inet"):
        if (connection.raddr, connection.laddr) in theirs:
            with socket.socket(fileno=socket.dup(connection.fd)) as copy:
                copy.shutdown(socket.SHUT_RDWR)
            count += 1
    return count
