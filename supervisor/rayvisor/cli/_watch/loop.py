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
from rayvisor.errors import RayvisorError, UnknownChildError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["watch"]

FRAME_SECONDS = 0.25
QUEUED_UPDATES_MAX = 32


def watch(socket: Path | None, path: str, *, as_json: bool) -> None:
    """Show a tree until Ctrl-C: as a picture on a terminal, otherwise as lines.

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
                _json(socket)
            elif sys.stdout.isatty() and os.environ.get("TERM") not in {"dumb", ""}:
                _screen(socket, path)
            else:
                _lines(socket, path)
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


def _json(socket: Path | None) -> None:
    for update in follow(socket, Event()):
        form = {"event": update.kind, **update.data, **({"why": update.why} if update.why else {})}
        click.echo(json.dumps(form))


def _lines(socket: Path | None, path: str) -> None:
    tree = TreeState(path)
    lines = Lines(tree)
    seen = False
    for update in follow(socket, Event()):
        tree.take(update)
        seen = seen or _is_there(tree)
        for line in lines.news():
            click.echo(line)


def _is_there(tree: TreeState) -> bool:
    """Return whether the tree has been seen; raise if it lacks the requested path."""
    if tree.has_lost_path():
        raise UnknownChildError(tree.path, tuple(tree.children))
    return not tree.is_empty


def _screen(socket: Path | None, path: str) -> None:
    console, tree = Console(highlight=False), TreeState(path)
    ended = Event()
    arrived: Queue[Update | RayvisorError] = Queue(QUEUED_UPDATES_MAX)

    def read() -> None:
        try:
            for update in follow(socket, ended):
                arrived.put(update)
        except RayvisorError as error:
            arrived.put(error)

    def current(*, last: bool = False) -> RenderableType:
        return picture(tree, console.width, console.height, last=last)

    # A separate thread waits on the socket, so that countdowns continue while the tree sends nothing.
    Thread(target=read, name="follow", daemon=True).start()
    seen = False
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                for update in _received(arrived):
                    if isinstance(update, RayvisorError):
                        raise update
                    tree.take(update)
                    seen = seen or _is_there(tree)
                live.update(current(), refresh=True)
    finally:
        ended.set()
        if seen:
            console.print(current(last=True))


def _received(arrived: Queue[Update | RayvisorError]) -> Iterator[Update | RayvisorError]:
    """Yield the updates that have arrived, after waiting at most one frame."""
    with suppress(Empty):
        yield arrived.get(timeout=FRAME_SECONDS)
        time.sleep(FRAME_SECONDS / 2)  # a burst of updates is drawn as one frame
        while True:
            yield arrived.get_nowait()
