"""The generated DOT is laid out by the real Graphviz. Run by ``make test-web``."""

from __future__ import annotations

import subprocess
from xml.etree import ElementTree as ET

import pytest

from statecharts import Chart, render, render_tree
from statecharts.lifecycles import CHARTS
from tests.statecharts.odd import ODD, large
from tests.statecharts.test_trees import TREE

SVG = "{http://www.w3.org/2000/svg}"


def laid_out(text: str) -> ET.Element:
    done = subprocess.run(
        ["dot", "-Tsvg"], input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return ET.fromstring(done.stdout)


@pytest.mark.parametrize("chart", [*CHARTS.values(), ODD, large()], ids=lambda chart: chart.name)
def test_graphviz_draws_every_leaf_and_every_event(chart: Chart) -> None:
    root = laid_out(render(chart, "dot", at=chart.initial))
    said = " ".join(" ".join("".join(each.itertext()).split()) for each in root.iter(f"{SVG}text"))
    for leaf in chart.leaves:
        assert " ".join(leaf.name.split()) in said
    squeezed = said.replace(" ", "")
    for event in chart.events:
        assert "".join(event.split()) in squeezed


def test_graphviz_draws_every_child_of_a_tree() -> None:
    root = laid_out(render_tree(TREE, "dot"))
    nodes = [each for each in root.iter(f"{SVG}g") if each.get("class") == "node"]
    edges = [each for each in root.iter(f"{SVG}g") if each.get("class") == "edge"]
    assert (len(nodes), len(edges)) == (len(list(TREE.nodes())), len(list(TREE.nodes())) - 1)
