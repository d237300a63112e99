"""``status --watch``: follows a tree and shows it until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, NoReturn

import click
from rich.console import Console
from rich.live import Live

from rayvisor.cli._watch.follow import follow
from rayvisor.cli._watch.lines import Lines
from rayvisor.cli._watch.screen import picture
from rayvisor.cli._watch.tree_state import TreeState, Update
from rayvisor.errors import UnknownChildError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["watch"]

QUEUED_UPDATES_MAX = 32


def watch(socket: Path | None, path: str, *, as_json: bool, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
    """Show a tree until Ctrl-C: as a picture on a terminal, otherwise as lines.

    Parameters
    ----------
    socket
        Control socket of the tree; None for the only running tree, whichever that is at the time.
    path
        Show what is at or below this path.
    as_json
        Print the messages of the tree.
    timeouts
        When the connection counts as lost, and how often something is shown.

    Raises
    ------
    ControlSocketError
        If several trees run and none was named.
    UnknownChildError
        If there is no child at ``path`` when the tree is first seen.
    """
    with _terminated():
        try:
            if as_json:
                _json(socket, timeouts)
            elif sys.stdout.isatty() and os.environ.get("TERM") not in {"dumb", ""}:
                _screen(socket, path, timeouts)
            else:
                _lines(socket, path, timeouts)
        except KeyboardInterrupt:
            return  # the normal way to end it


@contextmanager
def _terminated() -> Iterator[None]:
    """Exit on SIGTERM as on Ctrl-C, so that the terminal is restored."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _json(socket: Path | None, timeouts: Timeouts) -> None:
    for update in follow(socket, Event(), timeouts=timeouts):
        form = {"event": update.kind, **update.data, **({"why": update.why} if update.why else {})}
        click.echo(json.dumps(form))


def _lines(socket: Path | None, path: str, timeouts: Timeouts) -> None:
    tree = TreeState(path)
    lines = Lines(tree, timeouts=timeouts.commands)
    seen = False
    for update in follow(socket, Event(), timeouts=timeouts):
        tree.take(update)
        seen = seen or _is_there(tree)
        for line in lines.news():
            click.echo(line)


def _is_there(tree: TreeState) -> bool:
    """Return whether the tree has been seen; raise if it lacks the requested path."""
    if tree.has_lost_path():
        raise UnknownChildError(tree.path, tuple(tree.children))
    return not tree.is_empty


def _screen(socket: Path | None, path: str, timeouts: Timeouts) -> None:
    console, tree = Console(highlight=False), TreeState(path)
    ended = Event()
    arrived: Queue[Update | Exception] = Queue(QUEUED_UPDATES_MAX)

    def read() -> None:
        try:
            for update in follow(socket, ended, timeouts=timeouts):
                arrived.put(update)
        except Exception as error:  # noqa: BLE001 - raised again by the thread that draws
            arrived.put(error)

    def current(*, last: bool = False) -> RenderableType:
        return picture(tree, console.width, console.height, last=last, fresh=timeouts.commands.fresh)

    # A separate thread waits on the socket, so that countdowns continue while the tree sends nothing.
    Thread(target=read, name="follow", daemon=True).start()
    seen = False
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                for update in _received(arrived, timeouts.commands.frame):
                    if isinstance(update, Exception):
                        raise update
                    tree.take(update)
                    seen = seen or _is_there(tree)
                live.update(current(), refresh=True)
    finally:
        ended.set()
        if seen:
            console.print(current(last=True))


def _received(arrived: Queue[Update | Exception], frame: float) -> Iterator[Update | Exception]:
    """Yield the updates that have arrived, after waiting at most one frame."""
    with suppress(Empty):
        yield arrived.get(timeout=frame)
        time.sleep(frame / 2)  # a burst of updates is drawn as one frame
        while True:
            yield arrived.get_nowait()
