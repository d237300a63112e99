"""``python -m benchmarks faults``: runs the rows and prints the table."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from typing import Any

import anyio
import click

from benchmarks.faults.actors import ACTOR_ROWS
from benchmarks.faults.engines import ENGINE_ROWS
from benchmarks.faults.nodes import NODE_ROWS, start_cluster
from benchmarks.faults.rows import Row
from benchmarks.faults.servers import SERVER_ROWS
from benchmarks.faults.trial import Observed, Trial, existing, left_over, new_mark

__all__ = ["ROWS", "main", "run"]

ROWS: tuple[Row, ...] = (*ENGINE_ROWS, *SERVER_ROWS, *ACTOR_ROWS, *NODE_ROWS)
ROW_SECONDS = 600.0


async def run(row: Row, engine: str, mark: str, *, local: bool = False) -> Observed:
    """Run one row; return the observed response."""
    trial = Trial(engine, local=local)
    began = time.monotonic()
    before = existing(mark)
    try:
        with anyio.fail_after(ROW_SECONDS):
            await row.run(trial)
    except Exception as error:  # noqa: BLE001 - a row that raises counts as failed
        trial.observed.problem = trial.observed.problem or f"{type(error).__name__}: {error}"
        traceback.print_exception(error, file=sys.stderr)
    trial.observed.left = await left_over(mark, before)
    trial.observed.seconds = time.monotonic() - began
    return trial.observed


def _line(row: Row, found: Observed, off: str) -> str:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}"

    classes = f"{row.fault_class or '-'!s:12}{found.fault_class or '-'!s:12}"
    head = f"{'OFF' if off else 'ok':4}{row.name:36}{classes}{found.response:16}"
    times = f"{ms(found.detect_ms):>10}{ms(found.recover_ms):>11}"
    line = f"{head}{times}{found.lost:>5}{len(found.left):>5}  {found.root[:100]}"
    return f"{line}\n{'':{len(line) - len(found.root[:100])}}expected /{row.root}/" if row.root else line


@click.command("faults", help=__doc__)
@click.option("--engine", type=click.Choice(["sim", "vllm"]), default="sim", show_default=True)
@click.option("--only", default="", help="Only rows whose name this pattern matches.")
@click.option(
    "--repeat", type=click.IntRange(1), default=1, show_default=True, help="Number of runs of each row."
)
@click.option("--list", "listing", is_flag=True, help="List the rows and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="The table as JSON in the last line.")
def main(engine: str, only: str, repeat: int, *, listing: bool, as_json: bool) -> None:
    """Run the rows and print the results."""
    rows = [row for row in ROWS if re.search(only, row.name)]
    rows = [row for row in rows if row.only in {"", engine}]
    if not rows:
        raise click.BadParameter(f"no row matches {only!r}", param_hint="--only")
    if listing:
        for row in rows:
            click.echo(f"{row.name:36}{row.fault_class or '-'!s:12}{row.response:16}{row.root}")
        return
    mark = new_mark()
    stop_ray = start_cluster()
    classes = f"{'expected':12}{'found':12}"
    columns = f"{classes}{'response':16}{'detect ms':>10}{'recover ms':>11}{'lost':>5}{'left':>5}"
    click.echo(f"    {'fault':36}{columns}  root cause")
    table: list[dict[str, Any]] = []
    try:
        for row in (row for row in rows for _ in range(repeat)):
            found = anyio.run(run, row, engine, mark)
            off = row.deviations(found)
            click.echo(_line(row, found, off))
            if off:
                click.echo(f"      {off}")
            table.append(_as_json(row, found, off))
    finally:
        stop_ray()
    wrong = sum(bool(line["off"]) for line in table)
    click.echo(f"{len(table)} faults, {len(table) - wrong} as expected, {wrong} off")
    if as_json:
        click.echo(json.dumps({"engine": engine, "rows": table}))
    sys.exit(1 if wrong else 0)


def _as_json(row: Row, found: Observed, off: str) -> dict[str, Any]:
    return {
        "fault": row.name,
        "expected_class": row.fault_class,
        "found_class": found.fault_class,
        "expected_root": row.root,
        "found_root": found.root,
        "expected_response": row.response,
        "response": found.response,
        "detect_ms": found.detect_ms,
        "recover_ms": found.recover_ms,
        "lost": found.lost,
        "left": found.left,
        "seconds": round(found.seconds, 1),
        "off": off,
    }
