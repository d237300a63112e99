"""The command line: ``rayvisor``.

A command's module is imported when the command is run, so that ``rayvisor chart`` does not pay for
Ray, and ``rayvisor --help`` for nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["LazyCommand", "LazyGroup", "main"]


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is, and what the group's help says of it.

    Parameters
    ----------
    target
        ``"module:attribute"``.
    help
        One line. It stands here, since asking the command for its own would import it.
    """

    target: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is {type(command).__name__}, not a click command")
        return command


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands, without importing any."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command; this imports it."""
        lazy = self._lazy.get(cmd_name)
        return lazy.load() if lazy else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the group's help, without importing any."""
        rows = []
        for name in self.list_commands(ctx):
            lazy = self._lazy.get(name)
            command = None if lazy else super().get_command(ctx, name)
            if lazy:
                rows.append((name, lazy.help))
            elif command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str()))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    lazy={
        "demo": LazyCommand("rayvisor.cli.demo:demo", "Kill an engine in the middle of several streams."),
        "chart": LazyCommand("rayvisor.cli.chart:chart", "Render a lifecycle as a diagram or a table."),
        "run": LazyCommand("rayvisor.cli.run:run", "Run the tree that a TOML file describes."),
        "status": LazyCommand("rayvisor.cli.control:status", "Show a running tree."),
        "events": LazyCommand("rayvisor.cli.control:events", "Show what happens in a running tree."),
        "pause": LazyCommand("rayvisor.cli.control:pause", "Give children no new work for a while."),
        "resume": LazyCommand("rayvisor.cli.control:resume", "Take a pause back."),
        "restart": LazyCommand("rayvisor.cli.control:restart", "End children and start them anew."),
        "stop": LazyCommand("rayvisor.cli.control:stop", "End a child, or a whole tree."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="rayvisor")
def main() -> None:
    """Keep Ray actors and vLLM engines running."""
