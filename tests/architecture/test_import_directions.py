"""Imports point inwards only, and there are no cycles."""

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
    pages = {"statecharts.markdown", "statecharts.sphinx"}  # each is loaded by its site builder only
    charts = [module for module in imports.modules if inside(module, "statecharts") and module not in pages]
    imported = {name for chart in charts for name in imports.find_modules_directly_imported_by(chart)}
    outside = {name for name in imported if not inside(name, "statecharts")}
    assert outside <= sys.stdlib_module_names
    assert not any(imports.find_modules_that_directly_import(page) for page in pages)
    assert charts


def test_the_contracts_name_modules_that_exist(imports: grimp.ImportGraph) -> None:
    """A contract about a module that was renamed would always hold and check nothing."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    kinds = ("source_modules", "protected_modules", "forbidden_modules")
    named = {module for contract in contracts for kind in kinds for module in contract.get(kind, [])}
    ours = {module for module in named if inside(module, "rayvisor") or inside(module, "statecharts")}
    assert sorted(ours - imports.modules) == []


@pytest.fixture(scope="module")
def every_import() -> grimp.ImportGraph:
    """Build the graph of all our code; imports under TYPE_CHECKING and inside functions are included."""
    return grimp.build_graph("rayvisor", "statecharts", "benchmarks", cache_dir=None)


def cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    groups: set[tuple[str, ...]] = set()
    for module in graph.modules:
        both = graph.find_upstream_modules(module) & graph.find_downstream_modules(module)
        if both:
            groups.add(tuple(sorted({*both, module})))
    return [list(group) for group in sorted(groups)]


def ranks() -> dict[str, int]:
    """Return the height of each part of rayvisor in the layers of pyproject.toml; 0 is the lowest."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == ["rayvisor"])
    return {part.strip(): rank for rank, layer in enumerate(reversed(layers)) for part in layer.split("|")}


def upward_imports(graph: grimp.ImportGraph) -> list[str]:
    """Return the imports from an inner part to an outer one, or to one of the same layer."""
    rank = ranks()
    found = []
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            if not (importer.startswith("rayvisor.") and inside(imported, "rayvisor")):
                continue
            inner, outer = importer.split(".")[1], f"{imported}.".split(".")[1]
            if inner != outer and (not outer or rank[outer] >= rank[inner]):
                found.append(f"{importer} -> {imported}")
    return sorted(found)


def test_there_are_no_import_cycles_and_no_imports_from_an_inner_layer_to_an_outer_one(
    every_import: grimp.ImportGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    found, upward = cycles(every_import), upward_imports(every_import)
    with capsys.disabled():
        sys.stdout.write(f"\nimport cycles: {len(found)}, upward imports: {len(upward)}\n")
    assert found == []
    assert upward == []


def test_a_cycle_and_an_upward_import_are_found() -> None:
    graph = grimp.ImportGraph()
    for module in ("rayvisor.faults", "rayvisor.supervisor", "rayvisor.errors"):
        graph.add_module(module)
    graph.add_import(importer="rayvisor.supervisor", imported="rayvisor.faults")
    assert (cycles(graph), upward_imports(graph)) == ([], [])
    graph.add_import(importer="rayvisor.faults", imported="rayvisor.supervisor")
    assert cycles(graph) == [["rayvisor.faults", "rayvisor.supervisor"]]
    assert upward_imports(graph) == ["rayvisor.faults -> rayvisor.supervisor"]


def test_imports_for_type_checkers_and_inside_functions_count_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "circular"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "typed.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circular.late import b\n"
    )
    (package / "late.py").write_text("def b():\n    import circular.typed\n")
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("circular", cache_dir=None)
    assert cycles(graph) == [["circular.late", "circular.typed"]]


def test_the_layers_name_every_part_there_is() -> None:
    folder = ROOT / "supervisor" / "rayvisor"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert set(ranks()) == modules | packages
