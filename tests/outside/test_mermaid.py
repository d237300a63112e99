"""The generated Mermaid is parsed by the real mermaid package. Run by ``make test-web``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from statecharts import Chart, Leaf, State, Transition, Tree, render, render_tree
from statecharts.lifecycles import CHARTS
from tests.statecharts.odd import ODD, large
from tests.statecharts.test_pictures import TAKEN
from tests.statecharts.test_trees import TREE
from tools.web_tests import modules


def parsed(*texts: str) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("parse.mjs")
    done = subprocess.run(
        ["node", str(script), str(modules())],
        input=json.dumps(texts), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_mermaid_finds_every_state_and_every_arrow() -> None:
    charts = [*CHARTS.values(), ODD, large()]
    lit = [render(chart, "mermaid", at=chart.leaves[-1].name, path=[chart.initial]) for chart in charts]
    for chart, plain, shown in zip(
        charts, parsed(*(render(chart, "mermaid") for chart in charts)), parsed(*lit), strict=True
    ):
        assert plain.get("kind") == shown.get("kind") == "stateDiagram", (chart.name, plain, shown)
        arrows = sum(one.target is not None for one in chart.transitions)
        arrows += sum(len(choice.branches) + 1 for choice in chart.choices)
        assert plain["edges"] >= arrows
        assert plain["nodes"] >= len(chart.leaves) + len(chart.choices)


def test_mermaid_finds_every_node_of_a_tree() -> None:
    (found,) = parsed(render_tree(TREE, "mermaid"))
    nodes = len(list(TREE.nodes()))
    assert found == {"kind": "flowchart-v2", "nodes": nodes, "edges": nodes - 1}


def test_no_name_is_one_of_mermaids_own_words() -> None:
    words = ["end", "end note", "state", "note right of", "<<choice>>", "[*]", "-->", "click", "direction LR"]
    words += [
        "%% no",
        "{",
        "}",
        '"',
        "#",
        ";",
        ":",
        "classDef x",
        "subgraph",
        "\\n",
        "<br>",
        "ü",
        "中文",
        "--",
    ]
    texts = []
    for word in words:
        states = (State(f"{word} around", (Leaf(word), Leaf(f"{word} two"))), State.simple("other"))
        transitions = (
            Transition(word, word, f"{word} two"),
            Transition(f"{word} two", word, "other"),
            Transition("other", word, word, sets=(word,)),
            Transition(f"{word} around", "mark", None, sets=(word,)),
        )
        texts.append(render(Chart(word, states, word, transitions, flags=(word,)), "mermaid"))
    for word, found in zip(words, parsed(*texts), strict=True):
        assert found.get("kind") == "stateDiagram", (word, found)


def test_counts_and_states_are_read_as_text() -> None:
    counted, running = parsed(
        render(CHARTS["engine"], "mermaid", passes=TAKEN),
        render_tree(
            Tree("root", children=(Tree("a", state="DEAD.FAILED"), Tree("b", state="ELSE"))), "mermaid"
        ),
    )
    assert counted["kind"] == "stateDiagram"
    assert running == {"kind": "flowchart-v2", "nodes": 3, "edges": 2}


def test_what_is_wrong_is_noticed() -> None:
    (found,) = parsed("stateDiagram-v2\n    A --> --> B\n")
    assert "error" in found
