"""The option ``--web [PORT]`` of the commands that run a tree."""

from __future__ import annotations

import click

__all__ = ["web_option"]

web_option = click.option(
    "--web",
    "web",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=0,
    default=None,
    metavar="[PORT]",
    help="Serve the live page on this machine, at PORT or a free one, and print its URL.",
)
