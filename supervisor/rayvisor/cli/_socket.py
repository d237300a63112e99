"""Common to all clients of a running tree: the option ``--socket PATH`` and the error output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

__all__ = ["one_line_errors", "socket_option"]

socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    envvar="RAYVISOR_SOCKET",
    help="Control socket of the tree; not needed if only one tree runs.",
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report known errors as one line, with exit status 1."""
    from rayvisor._edges.control.client import ControlRefusedError
    from rayvisor._edges.live.text import escaped
    from rayvisor.errors import ControlSocketError, UnknownChildError

    try:
        yield
    except (ControlSocketError, ControlRefusedError, UnknownChildError) as error:
        # Our own list of sockets has several lines, and is escaped; no other message has.
        lines = str(error).split("\n") if isinstance(error, ControlSocketError) else [str(error)]
        raise click.ClickException("\n".join(map(escaped, lines))) from error
    except BrokenPipeError:
        # The reader is gone, and nothing is to be reported, not even by Python's flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
