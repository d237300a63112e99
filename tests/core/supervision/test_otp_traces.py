"""The core against 412 recorded runs of the real OTP supervisor."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rayvisor.testing.otp import difference, is_known, replay

ARCHIVE = Path(__file__).parent / "otp" / "traces.tar.gz"


def _read() -> list[dict[str, Any]]:
    files = []
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".json") else None
            if content is not None:
                files.append(json.load(content))
    return files


FILES = _read()


@pytest.mark.parametrize("file", FILES, ids=[file["name"] for file in FILES])
def test_the_core_decides_as_otp_does(file: dict[str, Any]) -> None:
    found = difference(file["trace"], replay(file["scenario"]))
    assert not found or is_known(file), found


def test_only_three_traces_are_known_to_differ() -> None:
    known = {file["name"] for file in FILES if difference(file["trace"], replay(file["scenario"]))}
    assert known == {"intensity_whole_seconds_in", "simple_gated_terminate", "simple_ignore_on_restart"}


def _run(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayvisor.testing.otp", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_prints_the_sum_in_its_last_line() -> None:
    done = _run(ARCHIVE)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "412 traces, 409 agree, 0 differ, 3 known"


def test_the_command_names_a_trace_that_differs_and_exits_with_one(tmp_path: Path) -> None:
    file = json.loads(
        json.dumps(next(file for file in FILES if file["name"] == "one_for_all_temporary_crash"))
    )
    (tmp_path / "good.json").write_text(json.dumps(file))
    file["name"] = "tampered"
    file["trace"]["steps"][0]["events"].pop()
    (tmp_path / "tampered.json").write_text(json.dumps(file))
    done = _run(tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "2 traces, 1 agree, 1 differ, 0 known"
    assert len([line for line in lines[:-1] if "tampered" in line]) == 1


def test_a_wrong_result_a_wrong_tree_and_a_wrong_end_are_differences() -> None:
    file = next(file for file in FILES if file["name"] == "restart_type_permanent")
    for change in ("result", "tree", "final"):
        trace = json.loads(json.dumps(file["trace"]))
        if change == "result":
            trace["steps"][1]["result"] = "noproc"
        elif change == "tree":
            trace["steps"][1]["tree"]["root"]["counts"]["active"] += 1
        else:
            trace["final"]["root"]["n"] += 1
        assert difference(trace, replay(file["scenario"]))
