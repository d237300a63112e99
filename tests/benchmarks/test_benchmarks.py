"""Each benchmark runs on the simulated engine and says what it measured. How fast is for people to judge."""

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


@pytest.mark.ray
def test_deaths_are_timed_beside_rays_own_restart(cluster_address: str) -> None:
    result = _run(cluster_address, "detect", "--runs", "1", "--peer-runs", "1")
    rows = {
        "EngineCore killed: decision": False,
        "host actor killed: decision": False,
        "Ray, max_restarts=0: ActorDiedError": True,
        "Ray restarts: ActorUnavailableError": True,
        "Ray restarts and retries: answer": True,
    }
    _check(result, "detect", rows)
    assert [target["at_most"] for target in result["targets"]] == [100, 30]


@pytest.mark.ray
def test_recovery_is_timed_beside_the_engines_cold_start(cluster_address: str) -> None:
    result = _run(cluster_address, "recover", "--runs", "1", "--move-runs", "1", "--streams", "4")
    rows = {
        "cold start of the engine itself": True,
        "one engine: kill to first new token": False,
        "second engine: kill to first new token": False,
        "second engine: all of its streams go on (4 in all)": False,
    }
    _check(result, "recover", rows)
    assert [target["at_most"] for target in result["targets"]] == [150]


@pytest.mark.ray
def test_a_spares_takeover_is_timed_with_one_stream_and_with_several(cluster_address: str) -> None:
    result = _run(cluster_address, "takeover", "--runs", "1", "--streams", "2")
    rows = {
        "kill to decision": False,
        "one stream: kill to next token": False,
        "2 streams: kill to next token": False,
        "2 streams: kill until all go on": False,
    }
    _check(result, "takeover", rows)
    assert [target["at_most"] for target in result["targets"]] == [120, 200]


@pytest.mark.ray
def test_throughput_is_measured_beside_the_engine_alone_and_rays_streams(cluster_address: str) -> None:
    result = _run(cluster_address, "throughput", "--runs", "1", "--streams", "2", "--tokens", "50")
    rows = {
        "through the pool": False,
        "read in the engine's process": True,
        "one Ray stream a request": True,
    }
    _check(result, "throughput", rows)


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
