"""The three rings: imports point inwards only."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("rayvisor", "statecharts", include_external_packages=True, cache_dir=None)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_every_contract_is_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_statecharts_imports_nothing_but_the_standard_library(imports: grimp.ImportGraph) -> None:
    pages = {"statecharts.markdown", "statecharts.sphinx"}  # each is loaded by the builder whose it is
    charts = [module for module in imports.modules if inside(module, "statecharts") and module not in pages]
    imported = {name for chart in charts for name in imports.find_modules_directly_imported_by(chart)}
    outside = {name for name in imported if not inside(name, "statecharts")}
    assert outside <= sys.stdlib_module_names
    assert not any(imports.find_modules_that_directly_import(page) for page in pages)
    assert charts


def test_the_contracts_name_modules_that_exist(imports: grimp.ImportGraph) -> None:
    """A contract about a module that was renamed would hold for ever, and say nothing."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    kinds = ("source_modules", "protected_modules", "forbidden_modules")
    named = {module for contract in contracts for kind in kinds for module in contract.get(kind, [])}
    ours = {module for module in named if inside(module, "rayvisor") or inside(module, "statecharts")}
    assert sorted(ours - imports.modules) == []
