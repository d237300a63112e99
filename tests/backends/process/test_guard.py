"""The host's side of the reaper."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rayvisor._backends.process import reaper
from rayvisor._backends.process.guard import Guard
from rayvisor.timeouts import ProcessTimeouts


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that takes the reaper's place."""
    path = tmp_path / "reaper.py"
    monkeypatch.setattr(reaper, "__file__", str(path))
    monkeypatch.setenv(reaper.MARKER, "")  # a guard sets it: later tests must not inherit its key
    return path


@pytest.mark.parametrize(
    "body",
    ["import time; time.sleep(600)", "import time; print(1, end='', flush=True); time.sleep(600)"],
    ids=["no answer", "half an answer"],
)
def test_a_reaper_that_does_not_start_in_time_is_an_error_and_is_killed(program: Path, body: str) -> None:
    program.write_text(body)
    guard = Guard("tests/guard/silent", timeouts=ProcessTimeouts(reaper_start=0.3))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"did not start within 0\.3 s"):
        guard.wait_ready()
    assert time.monotonic() - began < 30
    with pytest.raises(ChildProcessError):
        os.waitpid(guard._starter.pid, os.WNOHANG)


def test_a_reaper_that_ends_at_once_is_an_error_with_its_exit_status(program: Path) -> None:
    program.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="did not start: exit status 3"):
        Guard("tests/guard/failed", timeouts=ProcessTimeouts(reaper_start=60.0)).wait_ready()


def test_the_reaper_gets_its_timeouts_as_arguments(program: Path) -> None:
    program.write_text("import os, sys; os.write(2, ' '.join(sys.argv[3:]).encode()); sys.exit(3)")
    log_file = program.with_name("reaper.log")
    timeouts = ProcessTimeouts(reaper_scan=0.25, reaper_kill=3.0)
    with pytest.raises(RuntimeError, match="exit status 3"):
        Guard("tests/guard/times", log_file=str(log_file), timeouts=timeouts).wait_ready()
    assert log_file.read_text() == "tests/guard/times 0.25 3.0"
