"""``rayvisor status|events|pause|resume|restart|stop``: clients of a running tree's control socket."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rayvisor._edges.control.client import ControlClient, find
from rayvisor._edges.live.text import escaped
from rayvisor.cli._lines import record_line, tree_lines
from rayvisor.cli._socket import one_line_errors, socket_option
from rayvisor.timeouts import DEFAULT_TIMEOUTS

__all__ = ["events", "pause", "restart", "resume", "status", "stop"]

F = TypeVar("F", bound=Callable[..., Any])

_path = click.argument("path", default="", metavar="[PATH]")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _client(command: F) -> F:
    """Pass the client of the selected tree to a command."""

    @socket_option
    @functools.wraps(command)
    def run(socket_path: Path | None, **options: Any) -> Any:
        with one_line_errors():
            return command(find(socket_path), **options)

    return run  # type: ignore[return-value]


@click.command()
@_path
@socket_option
@click.option("--watch", is_flag=True, help="Keep showing changes until Ctrl-C.")
@click.option("--metrics", is_flag=True, help="Print metrics in the Prometheus text format.")
@_json
def status(*, socket_path: Path | None, path: str, watch: bool, metrics: bool, as_json: bool) -> None:
    """Show the tree, or the part of it below PATH.

    With --watch, keep showing it with its faults and decisions, even when it ends and returns: as a picture
    on a terminal, otherwise one line for each event; with --json, the messages of the tree. With --metrics,
    print the metrics of the whole tree in the Prometheus text format, for example for a textfile collector.
    """
    if metrics and (watch or as_json or path):
        raise click.UsageError("--metrics prints the whole tree once: leave out PATH, --watch and --json")
    with one_line_errors():
        if metrics:
            click.echo(find(socket_path).get("/v1/metrics"), nl=False)
        elif watch:
            # Imported here, since no other command needs it.
            from rayvisor.cli._watch.loop import watch as show

            show(socket_path, path.strip("/"), as_json=as_json)
        else:
            _status(find(socket_path), path, as_json=as_json)


def _status(client: ControlClient, path: str, *, as_json: bool) -> None:
    answer = client.get("/v1/status", path=path.strip("/"))
    if as_json:
        click.echo(json.dumps(answer))
        return
    for line in tree_lines(answer["tree"]):
        click.echo(line)
    for each in answer["instructions"]:
        error = f": {each['error']}" if each["error"] else ""
        click.echo(escaped(f"instruction {each['request_id']}: {each['instruction']} {each['state']}{error}"))


@click.command()
@_client
@_json
def events(client: ControlClient, *, as_json: bool) -> None:
    """Print each event from now on as a line, until the tree has ended."""
    for form in client.events():
        click.echo(json.dumps(form) if as_json else record_line(form))


@click.command()
@_path
@click.option(
    "--mode",
    type=click.Choice(["wait", "keep", "abort"]),
    default="wait",
    show_default=True,
    help="Requests in flight finish first (wait), stay in their engine (keep), or move to another (abort).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.0),
    default=60.0,
    show_default=True,
    help="Seconds to wait in mode wait.",
)
@_client
@_json
def pause(client: ControlClient, *, path: str, mode: str, timeout: float, as_json: bool) -> None:
    """Stop giving new work to PATH, or the whole tree, until it is resumed. No request is lost."""
    body = {"path": path, "mode": mode, "timeout": timeout}
    answer = client.post("/v1/pause", body, timeout + DEFAULT_TIMEOUTS.commands.pause_slack)
    left = answer["in_flight"]
    after = f" after {timeout:g} s" if left and mode == "wait" else ""
    _say(answer, f"paused {_name(path)} ({mode}): {left or 'nothing'} in flight{after}", as_json=as_json)


@click.command()
@_path
@_client
@_json
def resume(client: ControlClient, *, path: str, as_json: bool) -> None:
    """End the pause of PATH, or of the whole tree."""
    _say(client.post("/v1/resume", {"path": path}), f"resumed {_name(path)}", as_json=as_json)


@click.command()
@_path
@_client
@_json
def restart(client: ControlClient, *, path: str, as_json: bool) -> None:
    """Stop PATH (by default all children, in order) and start it again; return when it is up."""
    _say(client.post("/v1/restart", {"path": path}), f"restarted {_name(path)}", as_json=as_json)


@click.command()
@_path
@_client
@_json
def stop(client: ControlClient, *, path: str, as_json: bool) -> None:
    """Stop PATH, or the whole tree, in order; return when it is down."""
    answer = client.post("/v1/stop", {"path": path})
    seconds = DEFAULT_TIMEOUTS.commands.stop
    if not path.strip("/") and not client.wait_until_gone(seconds):
        raise click.ClickException(f"the tree did not end within {seconds:g} s")
    _say(answer, f"stopped {_name(path)}", as_json=as_json)


def _say(answer: Any, text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else escaped(text))


def _name(path: str) -> str:
    return path.strip("/") or "the tree"
