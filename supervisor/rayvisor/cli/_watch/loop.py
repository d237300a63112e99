"""``status --watch``: follows, and shows, until Ctrl-C."""

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

from rayvisor.cli._watch.following import follow
from rayvisor.cli._watch.known import Known, Told
from rayvisor.cli._watch.lines import Lines
from rayvisor.cli._watch.screen import picture
from rayvisor.errors import RayvisorError, UnknownChildError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["watch"]

FRAME_SECONDS = 0.25
KEPT = 32


def watch(socket: Path | None, path: str, *, as_json: bool) -> None:
    """Show a tree until Ctrl-C, on a terminal as a picture, else as lines.

    Raises
    ------
    ControlSocketError
        Several trees run, and none was named.
    UnknownChildError
        There is no child at ``path`` when the tree is seen first.
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
            return  # that is how one ends it


@contextmanager
def _terminated() -> Iterator[None]:
    """Have SIGTERM leave as Ctrl-C does, so that the terminal is as it was."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _json(socket: Path | None) -> None:
    for told in follow(socket, Event()):
        form = {"event": told.kind, **told.data, **({"why": told.why} if told.why else {})}
        click.echo(json.dumps(form))


def _lines(socket: Path | None, path: str) -> None:
    known = Known(path)
    lines = Lines(known)
    seen = False
    for told in follow(socket, Event()):
        known.take(told)
        seen = seen or _is_there(known)
        for line in lines.news():
            click.echo(line)


def _is_there(known: Known) -> bool:
    """Whether the tree has been seen; what is asked for has to be in it then."""
    if known.has_lost_path():
        raise UnknownChildError(known.path, tuple(known.children))
    return not known.is_empty


def _screen(socket: Path | None, path: str) -> None:
    console, known = Console(highlight=False), Known(path)
    ended = Event()
    arrived: Queue[Told | RayvisorError] = Queue(KEPT)  # who does not take them is told anew

    def read() -> None:
        try:
            for told in follow(socket, ended):
                arrived.put(told)
        except RayvisorError as error:
            arrived.put(error)

    def drawn(*, last: bool = False) -> RenderableType:
        return picture(known, console.width, console.height, last=last)

    # A thread of its own waits on the socket: countdowns go on while the tree says nothing.
    Thread(target=read, name="follow", daemon=True).start()
    seen = False
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                for told in _taken(arrived):
                    if isinstance(told, RayvisorError):
                        raise told
                    known.take(told)
                    seen = seen or _is_there(known)
                live.update(drawn(), refresh=True)
    finally:
        ended.set()
        if seen:
            console.print(drawn(last=True))


def _taken(arrived: Queue[Told | RayvisorError]) -> Iterator[Told | RayvisorError]:
    """What has arrived, after a frame's time at most."""
    with suppress(Empty):
        yield arrived.get(timeout=FRAME_SECONDS)
        time.sleep(FRAME_SECONDS / 2)  # a burst is one frame
        while True:
            yield arrived.get_nowait()
