"""Each benchmark runs on the simulated engine and reports its measurements; speed itself is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Report, Target
from tests.attached import attached

ROOT = Path(__file__).resolve().parent.parent.parent


def _run(ray: str, *arguments: str) -> dict[str, Any]:
    program = "import runpy; runpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run(
        [*attached(ray, program), *arguments, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _check(result: dict[str, Any], name: str, rows: dict[str, bool]) -> None:
    assert result["benchmark"] == name
    assert result["engine"] == "sim"
    assert {"cpus", "load_before", "load_after", "seconds", "targets", "notes"} <= result.keys()
    assert {row["what"]: row["peer"] for row in result["rows"]} == rows
    for row in result["rows"]:
        assert 0 < row["min"] <= row["median"] <= row["max"]
        assert row["unit"]
        assert row["values"]
    for target in result["targets"]:
        assert isinstance(target["met"], bool)


TIMED: list[tuple[list[str], dict[str, bool], list[float]]] = [
    (
        ["detect", "--runs", "1", "--peer-runs", "1"],
        {
            "EngineCore killed: decision": False,
            "host actor killed: decision": False,
            "Ray, max_restarts=0: ActorDiedError": True,
            "Ray restarts: ActorUnavailableError": True,
            "Ray restarts and retries: answer": True,
        },
        [100, 30],
    ),
    (
        ["recover", "--runs", "1", "--move-runs", "1", "--streams", "4"],
        {
            "cold start of the engine itself": True,
            "one engine: kill to first new token": False,
            "second engine: kill to first new token": False,
            "second engine: all of its streams continue (4 total)": False,
        },
        [150],
    ),
    (
        ["takeover", "--runs", "1", "--streams", "2"],
        {
            "kill to decision": False,
            "one stream: kill to next token": False,
            "2 streams: kill to next token": False,
            "2 streams: kill until all continue": False,
        },
        [120, 200],
    ),
    (
        ["throughput", "--runs", "1", "--streams", "2", "--tokens", "50"],
        {"through the pool": False, "read in the engine's process": True, "one Ray stream a request": True},
        [],
    ),
]
"""A benchmark, its rows (True for another system), and their upper limits."""


@pytest.mark.ray
@pytest.mark.parametrize(("arguments", "rows", "at_most"), TIMED, ids=[case[0][0] for case in TIMED])
def test_a_benchmark_times_us_beside_what_it_is_compared_with(
    cluster_address: str, arguments: list[str], rows: dict[str, bool], at_most: list[float]
) -> None:
    result = _run(cluster_address, *arguments)
    _check(result, arguments[0], rows)
    assert [target["at_most"] for target in result["targets"] if "at_most" in target] == at_most


def test_a_report_is_a_table_and_its_last_line_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("example", "sim")
    report.add("ours", [3.0, 1.0, 2.0], "ms")
    report.add("theirs", [40.0], "ms", peer=True)
    assert report.add("not measured", [], "ms") is None
    report.targets += [Target("ours", 2.0, 2.5), Target("rate", 2.0, 2.5, at_most=False)]
    report.show(as_json=True)
    *table, last = capsys.readouterr().out.splitlines()
    assert [row["median"] for row in json.loads(last)["rows"]] == [2.0, 40.0]
    assert [target["met"] for target in json.loads(last)["targets"]] == [True, False]
    assert any("theirs *" in line for line in table)
    assert any("MISSED: rate" in line for line in table)


def test_an_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr
