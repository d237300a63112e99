from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from statecharts import ChartError, Tree, formats, register_tree_renderer, render_tree, tree_formats
from statecharts.renderers.scxml import NAMESPACE
from tests.statecharts.odd import parsed
from tests.statecharts.test_pictures import SVG, boxes, texts

GOLDEN = Path(__file__).parent / "golden"
PLAIN = (("strategy", "one_for_one"), ("intensity", "3 in 900 s"))
TREE = Tree(
    "root",
    PLAIN,
    (
        Tree(
            "pool",
            PLAIN,
            (Tree("pool/1", state="ALIVE.SERVING"), Tree("pool/2", (("restart", "permanent"),))),
        ),
        Tree('o"dd <&> \\name;', (("kind", "actor | coroutine"),) * 5, (Tree("below"),)),
        Tree("last"),
    ),
)


@pytest.mark.parametrize("form", tree_formats())
def test_a_tree_is_drawn_as_it_was_looked_at(form: str) -> None:
    assert render_tree(TREE, form) == (GOLDEN / f"tree.{form}").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["mermaid", "dot"])
def test_every_child_hangs_below_its_parent(form: str) -> None:
    arrows = re.findall(r"n(\d+) --?> n(\d+)", render_tree(TREE, form))
    nodes = [node.name for node in TREE.nodes()]
    pairs = {(nodes[int(above)], nodes[int(below)]) for above, below in arrows}
    assert pairs == {(node.name, child.name) for node in TREE.nodes() for child in node.children}


def test_json_is_the_tree_itself() -> None:
    model = json.loads(render_tree(TREE, "json"))
    assert (model["kind"], model["name"]) == ("tree", "root")
    assert [child["name"] for child in model["children"]] == [child.name for child in TREE.children]
    assert model["children"][0]["children"][0]["state"] == "ALIVE.SERVING"


def wide(children: int) -> Tree:
    below = tuple(Tree(f"c{index}", PLAIN * (index % 4)) for index in range(children))
    return Tree("wide", PLAIN * 20, (Tree("first", (), below[:2]), *below[2:]))


@pytest.mark.parametrize("tree", [TREE, wide(3), wide(200), Tree("alone")], ids=lambda tree: tree.name)
def test_no_box_lies_on_another_and_every_text_is_in_one(tree: Tree) -> None:
    root = parsed(render_tree(tree, "svg"))
    page = (float(root.get("width", 0)), float(root.get("height", 0)))
    areas = boxes(root, "card", "frame")
    assert len(areas) == len(list(tree.nodes()))
    # In the order of the picture those far from each other need not be compared.
    for one, other in combinations(areas, 2):
        assert not one.meets(other)
    for text in texts(root):
        assert any(area.holds(text) for area in areas), text
    for area in areas:
        assert area.left >= 0
        assert area.top >= 0
        assert area.right <= page[0]
        assert area.bottom <= page[1]
    assert root.find(f"{SVG}desc") is not None


@pytest.mark.parametrize("form", tree_formats())
def test_each_state_of_a_child_shows_in_every_format(form: str) -> None:
    states = ("", "ALIVE.SERVING", "PAUSED.STALE", "RESTARTING.BACKOFF", "DEAD.FAILED", "ELSEWHERE")
    texts = [render_tree(Tree("root", children=(Tree("child", state=state),)), form) for state in states]
    assert len(set(texts)) == len(states)
    for state, text in zip(states, texts, strict=True):
        assert state in text


def test_a_tree_in_scxml_has_every_node_below_its_parent() -> None:
    root = parsed(render_tree(TREE, "scxml"))
    below = {
        (above.get(f"{{{NAMESPACE}}}name"), child.get(f"{{{NAMESPACE}}}name"))
        for above in root.iter()
        for child in above
    }
    assert below - {(None, "root")} == {
        (node.name, child.name) for node in TREE.nodes() for child in node.children
    }


def test_a_tree_shows_itself_in_notebooks() -> None:
    assert TREE._repr_svg_() == render_tree(TREE, "svg")
    assert TREE._repr_mimebundle_()["image/svg+xml"] == TREE._repr_svg_()


def test_an_unknown_format_names_those_for_trees() -> None:
    with pytest.raises(ChartError, match="use one of mermaid, dot, svg, scxml, table, json"):
        render_tree(TREE, "pdf")


@pytest.mark.usefixtures("own_registry")
def test_a_new_format_is_offered_and_used() -> None:
    assert tree_formats() == formats() == ("mermaid", "dot", "svg", "scxml", "table", "json")
    register_tree_renderer("name", lambda tree: f"{tree.name}\n")
    assert render_tree(TREE, "name") == "root\n"
    for name in ("", "svg"):
        with pytest.raises(ValueError, match=f"name={name!r}"):
            register_tree_renderer(name, lambda tree: tree.name)


@pytest.mark.parametrize("name", ["", " ", "\t\n", "\u00a0", "\u3000"])
def test_a_blank_name_is_no_empty_label_in_mermaid(name: str) -> None:
    text = render_tree(Tree("t", (), (Tree(name),)), "mermaid")
    assert 'n1["#160;"]' in text
