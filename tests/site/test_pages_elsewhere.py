"""Charts on pages: unmodified Sphinx and MkDocs render the directive and the fence.

These tests need the extra ``docs``: ``make docs`` runs them, ``make test`` does not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Build = Callable[[Path, str], subprocess.CompletedProcess[str]]

DOOR = """\
from statecharts import Chart, Leaf, State, Transition

DOOR = Chart(
    name="door",
    states=(State("OPEN", (Leaf("AJAR"), Leaf("WIDE"))), State.simple("SHUT")),
    initial="SHUT",
    transitions=(
        Transition("SHUT", "push", "AJAR"),
        Transition("AJAR", "push", "WIDE"),
        Transition("OPEN", "pull", "SHUT"),
    ),
)
"""


def _build(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "doors.py").write_text(DOOR, encoding="utf-8")
    roots = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": roots},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _sphinx(folder: Path, page: str, builder: str = "html") -> subprocess.CompletedProcess[str]:
    (folder / "conf.py").write_text('extensions = ["statecharts.sphinx"]\n', encoding="utf-8")
    (folder / "index.rst").write_text(page, encoding="utf-8")
    return _build(folder, "sphinx", "-W", "-q", "-b", builder, ".", "out")


def _mkdocs(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page, encoding="utf-8")
    (folder / "mkdocs.yml").write_text(
        "site_name: doors\n"
        "markdown_extensions:\n"
        "  - pymdownx.superfences:\n"
        "      custom_fences:\n"
        "        - name: statechart\n"
        "          class: statechart\n"
        "          format: !!python/name:statecharts.markdown.fence\n",
        encoding="utf-8",
    )
    return _build(folder, "mkdocs", "build", "--strict", "--site-dir", "out")


def _shows(html: str) -> None:
    """Check that the page has both pictures, with distinct ids, and the highlighted state."""
    assert html.count('<figure class="statechart-figure">') == 2
    ids = re.findall(r'<(?:title|desc) id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) == 4
    assert 'data-leaf="AJAR"' in html
    assert "A door that is not shut</figcaption>" in html
    assert re.search(r'class="statechart-lit" data-leaf="RETRYING"', html)


DIRECTIVES = (
    "Doors\n=====\n\n"
    ".. statechart:: doors:DOOR\n   :caption: A door that is not shut\n\n"
    ".. statechart:: task\n   :state: RETRYING\n   :path: PENDING, RUNNING\n"
)
FENCES = (
    "# Doors\n\n"
    "```statechart\ndoors:DOOR\ncaption: A door that is not shut\n```\n\n"
    "```statechart\ntask\nstate: RETRYING\npath: PENDING RUNNING\n```\n"
)


@pytest.mark.parametrize(
    ("build", "page"), [(_sphinx, DIRECTIVES), (_mkdocs, FENCES)], ids=["sphinx", "mkdocs"]
)
def test_a_page_shows_its_charts(tmp_path: Path, build: Build, page: str) -> None:
    built = build(tmp_path, page)
    assert built.returncode == 0, built.stderr
    _shows((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


def test_a_builder_without_pictures_shows_the_chart_as_a_table(tmp_path: Path) -> None:
    built = _sphinx(tmp_path, "Doors\n=====\n\n.. statechart:: doors:DOOR\n", builder="text")
    assert built.returncode == 0, built.stderr
    assert "| AJAR " in (tmp_path / "out" / "index.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("windows:DOOR", "No module named 'windows'"),
        ("doors:Chart", "neither a Chart nor a Tree"),
        ("dor", "one of actor"),
    ],
)
def test_an_unknown_name_fails_the_build_with_the_reason(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "sphinx").mkdir()
    (tmp_path / "mkdocs").mkdir()
    for built in (
        _sphinx(tmp_path / "sphinx", f"Doors\n=====\n\n.. statechart:: {name}\n"),
        _mkdocs(tmp_path / "mkdocs", f"# Doors\n\n```statechart\n{name}\n```\n"),
    ):
        assert built.returncode != 0
        assert said in built.stderr
