"""Logs of engines do not pile up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayvisor._backends.host.log_files import LogFiles
from rayvisor.timeouts import HostTimeouts

WEEKS = 2 * 7 * 86400.0


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def made(folder: Path, name: str, age: float) -> Path:
    path = folder / name
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_logs_of_hosts_that_are_gone_are_deleted_after_a_week_and_nothing_else(
    tmp_path: Path, gone: int
) -> None:
    old = made(tmp_path, f"engine-llm.1-{gone}-1.log", WEEKS)
    second = made(tmp_path, f"engine-a-b-{gone}-3.2.log", WEEKS)
    kept = {
        made(tmp_path, f"engine-llm.1-{gone}-2.log", 3600.0),
        made(tmp_path, f"engine-llm.1-{os.getpid()}-1.log", WEEKS),  # its host lives
        made(tmp_path, f"engine-{gone}.log", WEEKS),  # not ours
        made(tmp_path, "notes.txt", WEEKS),
    }
    new = Path(LogFiles("llm/2", str(tmp_path)).next(1))
    assert set(tmp_path.iterdir()) == {*kept, new}
    assert not old.exists()
    assert not second.exists()


def test_a_tree_may_keep_the_logs_of_hosts_that_are_gone_for_another_time(tmp_path: Path, gone: int) -> None:
    old = made(tmp_path, f"engine-llm.1-{gone}-1.log", 120.0)
    recent = made(tmp_path, f"engine-llm.1-{gone}-2.log", 5.0)
    LogFiles("llm/2", str(tmp_path), timeouts=HostTimeouts(log_retention=60.0)).next(1)
    assert (old.exists(), recent.exists()) == (False, True)


def test_of_logs_of_hosts_that_are_gone_the_thousand_newest_are_kept(tmp_path: Path, gone: int) -> None:
    logs = [made(tmp_path, f"engine-llm.1-{gone}-{n}.log", 60.0 + n) for n in range(1003)]
    alive = made(tmp_path, f"engine-llm.1-{os.getpid()}-1.log", 3600.0)
    new = Path(LogFiles("llm/2", str(tmp_path)).next(1))
    assert set(tmp_path.iterdir()) == {*logs[:1000], alive, new}


def test_a_child_keeps_its_last_three_logs(tmp_path: Path) -> None:
    files = LogFiles("llm/1", str(tmp_path))
    paths = [Path(files.next(incarnation)) for incarnation in range(1, 6)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]


LONG = ["x" * 300, "é" * 260, "磁" * 200, "/".join(["x" * 250] * 4), "\U0001f600" * 90]


@pytest.mark.parametrize("child", LONG, ids=len)
def test_the_log_of_a_child_with_a_long_name_has_a_valid_name_of_its_own(tmp_path: Path, child: str) -> None:
    paths = [Path(LogFiles(name, str(tmp_path)).next(10**9)) for name in (child, f"{child}a", f"{child}b")]
    assert len(set(tmp_path.iterdir())) == 3
    assert len({path.name.split("-")[1] for path in paths}) == 3
