"""The commands that talk to a running tree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result

import rayvisor as rv
from rayvisor._edges.live.text import age
from rayvisor.cli import main
from rayvisor.cli._lines import record_line, tree_lines
from statecharts import render_tree, tree_formats


async def idle() -> None:
    await anyio.sleep_forever()


def spec(*names: str) -> rv.SupervisorSpec:
    inner = rv.SupervisorSpec(children=[rv.coroutine(name, idle) for name in names])
    return rv.SupervisorSpec(children=[rv.subtree("side", inner), rv.coroutine("idler", idle)])


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYVISOR_CONTROL_DIR", str(tmp_path / "control"))
    monkeypatch.delenv("RAYVISOR_SOCKET", raising=False)
    return tmp_path / "control"


@pytest.fixture
def running() -> Iterator[Any]:
    with rv.run_in_thread(spec("a", "b"), local=True, control=True, handle_signals=False) as sup:
        yield sup


@pytest.mark.usefixtures("running")
def test_status_finds_the_one_tree_and_shows_every_child() -> None:
    result = call("status")
    assert result.exit_code == 0
    names = [line.split()[0].lstrip("├└─│ ") or line.split()[1] for line in result.output.splitlines()]
    assert names[:2] == ["NAME", "tree"]
    for words in ("side", "a", "b", "idler", "ALIVE.SERVING", "coroutine", "0 of 1"):
        assert words in result.output
    below = call("status", "side/a").output
    assert "side/a" in below
    assert "idler" not in below


@pytest.mark.usefixtures("running")
def test_status_as_json_is_what_the_socket_answers() -> None:
    told = json.loads(call("status", "--json").output)
    assert [child["path"] for child in told["tree"]["children"]] == ["side", "idler"]


@pytest.mark.parametrize("form", tree_formats())
def test_the_running_tree_is_drawn_with_the_state_of_each_child(form: str, running: Any) -> None:
    running.pause("side/a")
    text = call("chart", "--live", "--format", form).output
    for words in ("side/a", "idler", "RUNNING", "ALIVE.SERVING", "PAUSED.REQUESTED"):
        assert words in text.replace("#47;", "/"), words
    assert text == render_tree(running.status().tree(), form)
    assert "ALIVE.SERVING" in running.status()._repr_svg_()


def test_the_chart_of_a_child_says_where_it_is_and_what_it_did(running: Any) -> None:
    for _ in range(2):
        running.pause("side/a")
        running.resume("side/a")
    text = call("chart", "--of", "side/a", "--format", "table").output
    assert "Now in SERVING." in text
    assert re.search(r"ALIVE +\| pause +\|.*2 times, after", text)
    result = call("chart", "--of", "nobody")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert "no child has the id 'nobody'" in result.output
    assert call("chart", "engine", "--of", "side/a").exit_code == 2


def test_a_child_is_paused_resumed_restarted_and_stopped(running: Any) -> None:
    assert call("pause", "side", "--mode", "abort").output == "paused side (abort): nothing in flight\n"
    assert running.status("side/b").leaf == "REQUESTED"
    assert running.status("idler").leaf == "SERVING"
    assert call("resume", "side").output == "resumed side\n"
    assert running.status("side/b").leaf == "SERVING"
    assert call("restart", "side/a").output == "restarted side/a\n"
    assert running.status("side/a").incarnation == 2
    assert call("stop", "idler").output == "stopped idler\n"
    assert running.status("idler").leaf == "STOPPED"


def test_without_a_path_the_whole_tree_is_meant(running: Any) -> None:
    assert call("pause").output == "paused the tree (wait): nothing in flight\n"
    assert [node.leaf for node in running.status().children] == ["REQUESTED", "REQUESTED"]
    assert call("restart").output == "restarted the tree\n"
    assert [node.incarnation for node in running.status().children] == [2, 2]
    assert [node.leaf for node in running.status().children] == ["REQUESTED", "REQUESTED"]
    assert call("resume").exit_code == 0
    assert json.loads(call("stop", "--json").output) == {"path": ""}
    with pytest.raises(rv.SupervisorStoppedError):
        running.status()
    assert call("status").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "nobody"], "no child has the id 'nobody'"),
        (["pause", "nobody"], "no child has the id 'nobody'; there are: side, idler"),
        (["restart", "side/c"], "no child has the id 'c'; there are: a, b"),
        (["stop", "x/y"], "no child has the id 'x'"),
    ],
)
@pytest.mark.usefixtures("running")
def test_an_unknown_child_is_one_line_and_exit_status_1(arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "command", ["status", "events", "pause", "resume", "restart", "stop", "chart --live"]
)
def test_a_socket_that_cannot_be_reached_is_one_line_and_exit_status_1(command: str, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.sock")
    for arguments, words in (((), "no tree runs"), (("--socket", gone), "no such socket")):
        result = call(*command.split(), *arguments)
        assert result.exit_code == 1
        assert words in result.output
        assert len(result.output.splitlines()) == 1


@pytest.mark.usefixtures("running")
def test_of_several_trees_one_has_to_be_named() -> None:
    with rv.run_in_thread(spec("c"), local=True, control=True, handle_signals=False) as other:
        result = call("pause")
        assert result.exit_code == 1
        assert "2 trees run" in result.output
        assert f"--socket {other.control}  (running: side, idler)" in result.output
        assert other.status("idler").leaf == "SERVING"
        assert "c" in call("status", "--socket", str(other.control)).output


@pytest.mark.parametrize(
    "arguments", [["pause", "--mode", "soft"], ["pause", "--timeout", "-1"], ["pause", "a", "b"]]
)
def test_a_wrong_option_exits_2(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_ages_have_their_two_largest_units() -> None:
    assert [age(seconds) for seconds in (0, 59.9, 61, 3700, 90_000)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip


def test_a_record_that_is_not_known_here_is_shown_all_the_same() -> None:
    line = record_line({"record": "Novelty", "time": 1.5, "at": 1.0, "child": "llm/1", "why": "because"})
    assert line.endswith(".500  llm/1          Novelty why=because")


def test_the_last_fault_stands_below_its_child() -> None:
    leaf = dict.fromkeys(("epoch", "restarts", "requests"))
    leaf |= {"kind": "coroutine", "state": "ALIVE", "leaf": "SERVING", "incarnation": 3, "uptime": 61.0}
    leaf |= {"holds": [], "children": []}
    fault = {"root": "OSError: full", "fault_class": "FATAL", "incarnation": 2, "age": 5.0, "log_file": ""}
    child = {
        **leaf,
        "path": "a",
        "fault": fault,
        "leaf": "FAULTED",
        "state": "PAUSED",
        "holds": ["FAULTED", "REQUESTED"],
    }
    root = {**leaf, "path": "", "kind": "supervisor", "fault": None, "children": [child]}
    lines = list(tree_lines(root))
    assert "PAUSED" in lines[2]
    assert "+REQUESTED" in lines[2]
    assert "last fault: " in lines[3]
    assert "OSError: full" in lines[3]
    assert "(FATAL, incarnation 2, 5 s ago)" in lines[3]
