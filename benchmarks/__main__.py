"""``python -m benchmarks NAME [OPTIONS]``: runs the benchmark ``benchmarks.NAME``."""

from __future__ import annotations

import importlib
from typing import cast

import click

NAMES = ("core", "detect", "faults", "lag", "recover", "takeover", "throughput", "web")


class _Benchmarks(click.Group):
    """Each command is the ``main`` of a module, which is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - overrides click's method
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in NAMES:
            return None
        return cast("click.Command", importlib.import_module(f"benchmarks.{cmd_name}").main)


if __name__ == "__main__":
    _Benchmarks(help=__doc__)(prog_name="python -m benchmarks")
