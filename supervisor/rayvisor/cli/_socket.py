"""What the commands that talk to a running tree share: the option ``--socket PATH``, and how they fail."""

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
    help="Control socket of the tree; not needed where one tree runs.",
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Make what goes wrong one line and exit status 1."""
    from rayvisor._edges.control.client import ControlRefusedError
    from rayvisor.errors import ControlSocketError, UnknownChildError

    try:
        yield
    except (ControlSocketError, ControlRefusedError, UnknownChildError) as error:
        raise click.ClickException(str(error)) from error
    except BrokenPipeError:
        # The reader has gone, and nobody else is to notice: not Python's own flush at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
