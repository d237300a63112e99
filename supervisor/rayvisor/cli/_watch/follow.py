"""Follows a tree through its control socket, and waits for it where it is not, or no longer, there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

from rayvisor._edges.control.client import ControlClient, ControlRefusedError, find
from rayvisor._edges.sockets import default_folder, live_sockets
from rayvisor.cli._watch.tree_state import Update
from rayvisor.errors import ControlSocketError

__all__ = ["follow"]

SILENCE_SECONDS = 12.0
"""A tree says something every five seconds; after this long without a word it does not answer."""
AGAIN_SECONDS = 0.5
_BUSY = 503


def follow(socket: Path | None, ended: Event) -> Iterator[Update]:
    """What a tree tells, for ever: it may end, and come back.

    Parameters
    ----------
    socket
        Of the tree; None: that of the only one that runs, whichever that is at the time.
    ended
        Set when nobody listens any more.

    Raises
    ------
    ControlSocketError
        Several trees run, and none was named.
    ControlRefusedError
        The tree there cannot be looked at.
    """
    last, lost, over, followed = "", "", False, socket
    while not ended.is_set():
        client = ControlClient(socket) if socket is not None else _found(followed)
        try:
            if client is None:
                why = "no tree runs here"
            else:
                for message in client.live(last, SILENCE_SECONDS):
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
        ended.wait(AGAIN_SECONDS)


def _why(error: ControlSocketError | ControlRefusedError) -> str:
    """Why the tree cannot be seen for now; a refusal that will not pass is raised."""
    if isinstance(error, ControlSocketError):
        return error.reason
    if error.status != _BUSY:
        raise error
    return str(error)


def _found(followed: Path | None) -> ControlClient | None:
    """The tree that is followed already, else the only one that runs; None where none does."""
    there = live_sockets(default_folder())
    if followed in there:
        return ControlClient(followed)
    return find() if len(there) > 1 else ControlClient(there[0]) if there else None
