"""Logs and last words never go to, or come from, what another user put into the temporary folder."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rayvisor._backends.host.log_files import LogFiles
from rayvisor._backends.process.last_words import Folder
from rayvisor._backends.process.private_folders import private_folder

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def their_folder(path: Path, aside: Path) -> None:
    del aside
    path.mkdir(mode=0o777)
    os.chown(path, NOBODY, NOBODY)


def their_link(path: Path, aside: Path) -> None:
    path.symlink_to(aside)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def their_file(path: Path, aside: Path) -> None:
    del aside
    path.touch()
    os.chown(path, NOBODY, NOBODY)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("RAYVISOR_LOG_DIR", raising=False)
    return folder


@pytest.mark.parametrize("take", [their_folder, their_link, their_file])
def test_what_another_user_has_taken_is_not_used(
    take: Callable[[Path, Path], None], temporary: Path, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    for name in (f"rayvisor-{os.getuid()}", f"rayvisor-last-words-{os.getuid()}"):
        take(temporary / name, aside)
    log = Path(LogFiles("llm/1").next(1))
    assert log.parent == temporary / f"rayvisor-{os.getuid()}-2"
    assert private_folder(temporary / f"rayvisor-last-words-{os.getuid()}").name.endswith("-2")
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert Folder().read("") == []
    assert list(aside.iterdir()) == []


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "logs", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / f"engine-llm.1-{os.getpid()}-1.log").symlink_to(elsewhere)
    log = Path(LogFiles("llm/1", str(folder)).next(1))
    assert not log.is_symlink()
    assert not elsewhere.exists()


def test_a_named_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    their_folder(folder, tmp_path)
    log = Path(LogFiles("llm/1", str(folder)).next(1))
    assert log.parent == tmp_path / "logs-2"
    assert list(folder.iterdir()) == []
