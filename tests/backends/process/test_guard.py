"""The host's side of the reaper."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rayvisor._backends.process import reaper
from rayvisor._backends.process.guard import Guard


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that takes the reaper's place."""
    path = tmp_path / "reaper.py"
    monkeypatch.setattr(reaper, "__file__", str(path))
    monkeypatch.delenv(reaper.MARKER, raising=False)
    return path


@pytest.mark.parametrize(
    "body",
    ["import time; time.sleep(600)", "import time; print(1, end='', flush=True); time.sleep(600)"],
    ids=["no answer", "half an answer"],
)
def test_a_reaper_that_does_not_start_in_time_is_an_error_and_is_killed(program: Path, body: str) -> None:
    program.write_text(body)
    guard = Guard("tests/guard/silent")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"did not start within 0\.3 s"):
        guard.wait_ready(0.3)
    assert time.monotonic() - began < 30
    with pytest.raises(ChildProcessError):
        os.waitpid(guard._starter.pid, os.WNOHANG)


def test_a_reaper_that_ends_at_once_is_an_error_with_its_exit_status(program: Path) -> None:
    program.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="did not start: exit status 3"):
        Guard("tests/guard/failed").wait_ready(60)
