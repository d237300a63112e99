"""``rayvisor chart``: renders a lifecycle or a supervision tree to standard output."""

from __future__ import annotations

from pathlib import Path

import click

from rayvisor.cli._socket import one_line_errors, socket_option
from statecharts import ChartError, Tree, formats, render, render_drawing, render_tree, tree_formats
from statecharts.lifecycles import CHARTS

__all__ = ["chart"]


@click.command()
@click.argument("name", metavar=f"{{{','.join(CHARTS)}}}", type=click.Choice(tuple(CHARTS)), required=False)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(formats()),
    default="mermaid",
    show_default=True,
    help="The output format.",
)
@click.option("--state", metavar="STATE", help="Highlight this leaf, for example STALE or PAUSED.STALE.")
@click.option(
    "--tree",
    "tree_file",
    metavar="SPEC.toml",
    type=click.Path(path_type=Path),
    help=f"Render the supervision tree of this file instead ({', '.join(tree_formats())}).",
)
@click.option(
    "--of",
    "child",
    metavar="PATH",
    help="Render the chart of a child of a running tree, in its current state.",
)
@click.option("--live", is_flag=True, help="Render a running tree, each child with its state.")
@socket_option
@click.pass_context
def chart(
    context: click.Context,
    *,
    name: str | None,
    format_name: str,
    state: str | None,
    tree_file: Path | None,
    child: str | None,
    live: bool,
    socket_path: Path | None,
) -> None:
    """Render a lifecycle: its states, and the transition for each event.

    With --tree, render the supervisors and children of a file for `rayvisor run`, with their strategies,
    intensities and restart types. With --live, render those of a running tree, with their states. With --of,
    render the chart of one child of a running tree, with its state, its last transitions, and how often and
    after what time each was taken.
    """
    if child is not None:
        if name is not None or state is not None or tree_file is not None or live:
            raise click.UsageError(
                "--of PATH renders a child's chart: leave out NAME, --state, --tree and --live"
            )
        click.echo(_child_chart(socket_path, child.strip("/"), format_name), nl=False)
        return
    if live:
        if name is not None or state is not None or tree_file is not None:
            raise click.UsageError("--live renders a running tree: leave out NAME, --state and --tree")
        click.echo(_live(socket_path, format_name), nl=False)
        return
    if tree_file is not None:
        if name is not None or state is not None:
            raise click.UsageError("--tree SPEC.toml renders a tree: leave out NAME and --state")
        click.echo(_tree(tree_file, format_name), nl=False)
        return
    if name is None:
        argument = next(each for each in context.command.params if each.name == "name")
        raise click.MissingParameter(ctx=context, param=argument)
    try:
        click.echo(render(CHARTS[name], format_name, at=state), nl=False)
    except ChartError as error:
        raise click.BadParameter(str(error), ctx=context, param_hint="--state") from None


def _child_chart(socket_path: Path | None, path: str, format_name: str) -> str:
    from rayvisor._edges.control.client import find
    from rayvisor._edges.live.charts import drawing_from

    with one_line_errors():
        answer = find(socket_path).get("/v1/chart", path=path)
    return render_drawing(drawing_from(answer), format_name)


def _live(socket_path: Path | None, format_name: str) -> str:
    from rayvisor._edges.control.client import find
    from rayvisor._edges.http.json_forms import node_from

    with one_line_errors():
        answer = find(socket_path).get("/v1/status")
    return _rendered(node_from(answer["tree"]).tree(), format_name)


def _rendered(tree: Tree, format_name: str) -> str:
    try:
        return render_tree(tree, format_name)
    except ChartError as error:
        raise click.BadParameter(str(error), param_hint="--format") from None


def _tree(file: Path, format_name: str) -> str:
    from rayvisor.cli._picture import tree_of
    from rayvisor.config import load_tree
    from rayvisor.errors import SpecError

    try:
        return _rendered(tree_of(load_tree(file).spec, file.stem), format_name)
    except SpecError as error:
        raise click.UsageError(str(error)) from None
