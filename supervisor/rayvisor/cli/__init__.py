"""The command line ``rayvisor``.

A command's module is imported when the command is run, so that ``rayvisor chart`` does not import Ray and
``rayvisor --help`` imports nothing.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["LazyCommand", "LazyGroup", "main"]


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """The location of a command, and its line in the group's help.

    Parameters
    ----------
    target
        ``"module:attribute"``.
    help
        One line. It is repeated here because reading it from the command would import the command.
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

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; characters that the output's encoding lacks are printed as escape sequences."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands without importing any."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        lazy = self._lazy.get(cmd_name)
        return lazy.load() if lazy else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the group's help without importing any."""
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
        "demo": LazyCommand("rayvisor.cli.demo:demo", "Kill an engine mid-stream and lose no request."),
        "chart": LazyCommand("rayvisor.cli.chart:chart", "Render a lifecycle as a diagram or a table."),
        "run": LazyCommand("rayvisor.cli.run:run", "Run the tree that a TOML file describes."),
        "status": LazyCommand("rayvisor.cli.control:status", "Show a running tree."),
        "events": LazyCommand("rayvisor.cli.control:events", "Print the events of a running tree."),
        "pause": LazyCommand("rayvisor.cli.control:pause", "Stop giving new work to children."),
        "resume": LazyCommand("rayvisor.cli.control:resume", "End a pause."),
        "restart": LazyCommand("rayvisor.cli.control:restart", "Stop children and start them again."),
        "stop": LazyCommand("rayvisor.cli.control:stop", "Stop a child or a whole tree."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="rayvisor")
def main() -> None:
    """Keep Ray actors and vLLM engines running."""
