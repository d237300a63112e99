"""``rayvisor run``: runs the tree that a TOML file describes until it ends or is stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from rayvisor._edges.live.text import escaped
from rayvisor.cli._lines import record_line
from rayvisor.cli._web import WebCommand, web_option
from rayvisor.config import TreeFile, load_tree
from rayvisor.errors import (
    ControlSocketError,
    PublishError,
    RayvisorError,
    SpecError,
    SupervisorStoppedError,
    WorkerPackageError,
)
from rayvisor.timeouts import DEFAULT_TIMEOUTS

if TYPE_CHECKING:
    from rayvisor._runtime.broadcaster import RecordStream

__all__ = ["run"]


@click.command(cls=WebCommand)
@click.argument("spec", type=click.Path(path_type=Path), metavar="SPEC.toml")
@click.option(
    "--socket", "socket_path", help="Path of the control socket; by default one that the commands find."
)
@click.option("--publish", metavar="ADDR", help="Publish events at tcp://127.0.0.1:5570 or ipc://PATH.")
@click.option("--local", is_flag=True, help="Run engines as children of this process, without Ray.")
@web_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each event.")
@click.option("--verbose", is_flag=True, help="Show the supervisor's log as well.")
def run(
    *,
    spec: Path,
    socket_path: str | None,
    publish: str | None,
    local: bool,
    web: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run the tree that SPEC.toml describes, with its control socket open.

    Ctrl-C stops it in order, a second Ctrl-C immediately. Exit status: 0 if it was stopped or finished
    normally, 1 if it gave up or could not be started, 2 if the file is invalid.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, stream=sys.stderr)
    try:
        tree = load_tree(spec)
        _extend_pythonpath(spec)
        options = {"control": True, **tree.options}
        if socket_path is not None:
            options["control"] = socket_path
        if publish is not None:
            options["publish"] = publish
        if local:
            options["local"] = True
        anyio.run(partial(_run, tree, options, as_json=as_json, web=web))
    except KeyboardInterrupt:
        sys.exit(0)  # Ctrl-C: the tree has stopped in order
    except SpecError as error:
        click.echo(f"Error: {escaped(str(error))}", err=True)
        sys.exit(2)
    except RayvisorError as error:
        # The lines to paste are our own.
        lines = str(error).split("\n") if isinstance(error, WorkerPackageError) else [str(error)]
        click.echo("Error: " + "\n".join(map(escaped, lines)), err=True)
        sys.exit(1)


def _extend_pythonpath(spec: Path) -> None:
    """Let the workers of a Ray that is started here import modules from the folder of the file."""
    paths = [str(spec.absolute().parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


async def _run(
    tree: TreeFile,
    options: dict[str, Any],
    *,
    as_json: bool,
    web: int | None,
) -> None:
    from rayvisor.supervisor import Supervisor

    supervisor = Supervisor(tree.spec, **options)
    printing = asyncio.create_task(_print_records(supervisor.watch(), as_json=as_json), name="lines")
    printing.add_done_callback(_report_failure)
    try:
        if web is not None:
            page = await supervisor.serve_web(web)
            # With --json, standard output holds the events only.
            click.echo(f"live page: {page.url}", err=as_json)
        async with supervisor:
            if supervisor.control is not None and not as_json:
                click.echo(f"running; to inspect it: rayvisor status --socket {supervisor.control}")
                if supervisor.publish_address is not None:
                    click.echo(f"publishing events at {supervisor.publish_address}")
            await anyio.sleep_forever()
    except SupervisorStoppedError:
        return  # it was stopped while it started
    except SystemExit:
        return  # SIGTERM: it has stopped in order, as with Ctrl-C
    except (ControlSocketError, PublishError):
        printing.cancel()  # the tree has not started, so its record stream would never end
        raise
    finally:
        await asyncio.wait({printing}, timeout=DEFAULT_TIMEOUTS.commands.last_lines)


def _report_failure(printing: asyncio.Task[None]) -> None:
    """Report on standard error that events are no longer printed; the tree itself continues."""
    error = None if printing.cancelled() else printing.exception()
    if error is not None:
        with suppress(OSError, ValueError):  # standard error may be closed as well
            click.echo(f"Error: events are no longer printed: {type(error).__name__}: {error}", err=True)


async def _print_records(watch: RecordStream, *, as_json: bool) -> None:
    from rayvisor._edges.http.json_forms import record_form

    wall = time.time() - time.monotonic()
    async for record in watch:
        form = record_form(record, wall)
        click.echo(json.dumps(form) if as_json else record_line(form))
