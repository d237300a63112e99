"""``rayvisor chart``: renders a lifecycle to standard output."""

from __future__ import annotations

import click

from statecharts import formats, render
from statecharts.lifecycles import CHARTS

__all__ = ["chart"]


@click.command()
@click.argument("name", metavar=f"{{{','.join(CHARTS)}}}", type=click.Choice(tuple(CHARTS)))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(formats()),
    default="mermaid",
    show_default=True,
    help="What to write.",
)
def chart(name: str, format_name: str) -> None:
    """Render a lifecycle: its states, and what each event leads to."""
    click.echo(render(CHARTS[name], format_name), nl=False)
