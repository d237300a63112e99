"""The built wheel: its contents, its metadata, and what it leaves alone."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"rayvisor": ROOT / "supervisor" / "rayvisor", "statecharts": ROOT / "statecharts"}


def run_python(*arguments: str, cwd: Path = ROOT, path: str | None = None) -> str:
    """Run this interpreter and return its output; fail with its error output."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd)} | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run_python(*build, "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_exactly_rayvisor_and_statecharts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{file.relative_to(source)}"
        for package, source in SOURCES.items()
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert held == expected
    assert {"rayvisor/py.typed", "statecharts/py.typed"} <= held


def test_the_wheel_holds_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()
        stated = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0\n" in stated
    assert "License-File: LICENSE\n" in stated


def test_the_wheel_names_its_command_and_bounds_every_dependency(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = re.findall(r"^Requires-Dist: (.+)$", archive.read(metadata).decode(), re.MULTILINE)
        commands = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "rayvisor = rayvisor.cli:main" in commands
    unbounded = [line for line in requirements if "<" not in line or ">=" not in line]
    assert unbounded == []


def test_an_installed_wheel_imports_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run_python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)
    )
    seen = run_python(
        "-c",
        "import rayvisor, statecharts; print(rayvisor.__file__); print(statecharts.__file__)",
        cwd=tmp_path,
        path=str(target),
    )
    assert seen.splitlines() == [str(target / name / "__init__.py") for name in SOURCES]
    assert not (target / "supervisor").exists()


@pytest.mark.parametrize("place", ["the clone", "elsewhere"])
def test_vllms_own_supervisor_package_keeps_working(place: str, tmp_path: Path) -> None:
    """From the clone too, where the folder ``supervisor/`` lies in the first entry of the path."""
    seen = run_python(
        "-c",
        "import rayvisor, supervisor.childutils; print(supervisor.__file__)",
        cwd=ROOT if place == "the clone" else tmp_path,
    )
    assert Path(seen).parts[-3:] == ("site-packages", "supervisor", "__init__.py")


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "supervisor" / "__init__.py").exists()


HEAVY = ("ray", "vllm", "torch", "transformers", "numpy")


@pytest.mark.parametrize("module", ["rayvisor", "rayvisor.specs", "rayvisor.errors", "rayvisor.demo.model"])
def test_importing_it_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python("-c", code) == ""
