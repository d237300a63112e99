"""The option ``--socket PATH`` of the commands that talk to a running tree."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["socket_option"]

socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    envvar="RAYVISOR_SOCKET",
    help="Control socket of the tree; not needed where one tree runs.",
)
