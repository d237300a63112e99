"""Follows a tree through its control socket; reconnects when the tree is gone or does not run yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

from rayvisor._edges.control.client import ControlClient, ControlRefusedError, find
from rayvisor._edges.sockets import default_folder, live_sockets
from rayvisor.cli._watch.tree_state import Update
from rayvisor.errors import ControlSocketError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts, Timeouts

__all__ = ["follow"]

_BUSY = 503


def follow(socket: Path | None, ended: Event, *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Iterator[Update]:
    """Yield the updates of a tree forever; the tree may end and return.

    Parameters
    ----------
    socket
        Control socket of the tree; None for the only running tree, whichever that is at the time.
    ended
        Set when the consumer has stopped.
    timeouts
        How long the tree may send nothing, and the pause before connecting again.

    Raises
    ------
    ControlSocketError
        If several trees run and none was named.
    ControlRefusedError
        If the tree refuses to be followed.
    """
    last, lost, over, followed = "", "", False, socket
    while not ended.is_set():
        client = (
            ControlClient(socket, timeouts=timeouts.edges)
            if socket is not None
            else _found(followed, timeouts.edges)
        )
        try:
            if client is None:
                why = "no tree runs here"
            else:
                for message in client.live(last, timeouts.commands.silence):
                    if message.kind == "state":
                        last, lost, over, followed = message.id, "", False, client.path
                        yield Update("state", message.data)
                    elif message.kind == "over" and not over:
                        over = True
                        yield Update("over")
                    elif lost and not over:
                        lost = ""
                        yield Update("there")
                why = "the connection was closed"
        except (ControlSocketError, ControlRefusedError) as error:
            why = _why(error)
        if why != lost and not over:
            yield Update("lost", why=why)
        lost = why
        ended.wait(timeouts.commands.reconnect)


def _why(error: ControlSocketError | ControlRefusedError) -> str:
    """Return why the tree cannot be followed at the moment; raise a permanent refusal."""
    if isinstance(error, ControlSocketError):
        return error.reason
    if error.status != _BUSY:
        raise error
    return str(error)


def _found(followed: Path | None, timeouts: EdgeTimeouts) -> ControlClient | None:
    """Return the tree followed so far, otherwise the only running one; None if none runs."""
    sockets = live_sockets(default_folder(), timeouts=timeouts)
    if followed in sockets:
        return ControlClient(followed, timeouts=timeouts)
    if len(sockets) > 1:
        return find(timeouts=timeouts)
    return ControlClient(sockets[0], timeouts=timeouts) if sockets else None
