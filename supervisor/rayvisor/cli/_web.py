"""The option ``--web [PORT]`` of the commands that run a tree."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["WebCommand", "web_option"]

web_option = click.option(
    "--web",
    "web",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=0,
    default=None,
    metavar="[PORT]",
    help="Serve the live page on this machine, on PORT or a free port, and print its URL.",
)


class WebCommand(click.Command):
    """A command with ``--web [PORT]`` and a file; in ``--web tree.toml`` the file is not the port."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give ``--web`` an explicit value if the file follows it."""
        given = list(args)
        for at, argument in enumerate(args[:-1]):
            after = args[at + 1]
            if argument == "--":
                break
            if argument == "--web" and (after.endswith(".toml") or Path(after).is_file()):
                given[at] = "--web=0"
        return super().parse_args(ctx, given)
