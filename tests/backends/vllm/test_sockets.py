"""The folder of an engine's sockets, and its removal."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayvisor._backends.vllm.sockets import SocketFolder

VARIABLE = "VLLM_RPC_BASE_PATH"


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="s") as name:  # pytest's own folders have long names
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.delenv(VARIABLE, raising=False)
        yield Path(name)


def test_each_engine_has_its_own_which_goes_with_it(base: Path) -> None:
    first, second = SocketFolder(), SocketFolder()
    first.use()
    there = Path(os.environ[VARIABLE])
    (there / "a-socket").touch()
    second.use()
    assert Path(os.environ[VARIABLE]) != there
    assert stat.S_IMODE(there.stat().st_mode) == stat.S_IRWXU
    first.remove()
    assert not there.exists()
    assert Path(os.environ[VARIABLE]).exists()
    second.remove()
    assert VARIABLE not in os.environ
    assert list(base.iterdir()) == []


def test_a_folder_that_the_user_has_named_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/mine")
    folder = SocketFolder()
    folder.use()
    assert os.environ[VARIABLE] == "/mine"
    folder.remove()
    assert os.environ[VARIABLE] == "/mine"
    assert list(base.iterdir()) == []


def test_where_the_path_would_be_too_long_for_a_socket_vllm_s_own_stays(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = base / ("x" * 60)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    SocketFolder().use()
    assert VARIABLE not in os.environ
    assert list(far.iterdir()) == []


def test_what_a_killed_host_has_left_is_removed_by_a_later_start(base: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, recent, living = (
        base / f"rayvisor-ipc-{name}" for name in (f"{gone.pid}-a", f"{gone.pid}-b", "1-c")
    )
    for each in (left, recent, living):
        each.mkdir()
        (each / "a-socket").touch()
    for each in (left, living):
        os.utime(each, (time.time() - 3600, time.time() - 3600))
    folder = SocketFolder()
    folder.use()
    assert (left.exists(), recent.exists(), living.exists()) == (False, True, True)
    folder.remove()
