from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rayvisor.cli import LazyCommand, LazyGroup, main
from statecharts import formats, render, tree_formats
from statecharts.lifecycles import CHARTS

EXAMPLE = Path(__file__).parents[2] / "examples" / "tree.toml"


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("form", formats())
def test_a_chart_goes_to_standard_output(name: str, form: str) -> None:
    result = CliRunner().invoke(main, ["chart", name, "--format", form])
    assert result.exit_code == 0
    assert result.stdout == render(CHARTS[name], form)
    assert not result.stderr


def test_mermaid_is_what_one_gets_without_asking() -> None:
    result = CliRunner().invoke(main, ["chart", "actor"])
    assert result.stdout.startswith("stateDiagram-v2\n")


def test_the_state_that_is_asked_for_is_lit() -> None:
    result = CliRunner().invoke(main, ["chart", "engine", "--format", "svg", "--state", "PAUSED.STALE"])
    assert result.exit_code == 0
    assert result.stdout == render(CHARTS["engine"], "svg", at="STALE")
    assert 'class="card live"' in result.stdout


@pytest.mark.parametrize("form", tree_formats())
def test_the_tree_of_a_file_goes_to_standard_output(form: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["chart", "--tree", str(_tree_file(tmp_path)), "--format", form])
    assert result.exit_code == 0
    for word in ("one_for_one", "3 in 900 s", "llm/2", "side/ticker", "rest_for_one", "transient"):
        assert word in result.stdout, word
    assert not result.stderr


def test_the_tree_has_the_children_of_the_file_with_their_flags(tmp_path: Path) -> None:
    arguments = ["chart", "--tree", str(_tree_file(tmp_path)), "--format", "json"]
    tree = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert (tree["name"], tree["facts"]["intensity"]) == ("mine", "3 in 900 s")
    pool, side = tree["children"]
    assert [child["name"] for child in pool["children"]] == ["llm/1", "llm/2", "llm/3"]
    assert [child["facts"].get("standby") for child in pool["children"]] == [None, None, "yes"]
    assert side["facts"]["auto_shutdown"] == "any_significant"
    assert side["children"][0]["facts"] == {
        "kind": "coroutine",
        "restart": "transient",
        "shutdown": "brutal_kill",
        "significant": "yes",
    }


def _tree_file(folder: Path) -> Path:
    path = folder / "mine.toml"
    path.write_text(
        """
intensity = 3
period = 900.0
[[children]]
kind = "engine_pool"
id = "llm"
engine = "sim"
engine_args = {}
size = 2
standby = 1
[[children]]
kind = "supervisor"
id = "side"
strategy = "rest_for_one"
auto_shutdown = "any_significant"
    [[children.children]]
    kind = "coroutine"
    id = "ticker"
    function = "asyncio:sleep"
    restart = "transient"
    shutdown = "brutal_kill"
    significant = true
""",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chart", "engine", "--state", "GONE"], ["--state", "'GONE'", "SERVING", "EXHAUSTED"]),
        (["chart", "--tree", "gone.toml"], ["gone.toml", "cannot be read"]),
        (["chart", "engine", "--tree", "gone.toml"], ["--tree", "NAME"]),
        (["chart", "--tree", "gone.toml", "--state", "SERVING"], ["--tree", "--state"]),
        (["chart", "engine", "--live"], ["--live", "NAME"]),
        (["chart", "motor"], ["'motor'", "'actor'", "'engine'", "'task'", "'supervisor'"]),
        (["chart", "engine", "--format", "pdf"], ["--format", "'pdf'", "'mermaid'", "'table'"]),
        (["chart"], ["Missing argument", "actor", "engine", "task", "supervisor"]),
        (["char"], ["'char'"]),
    ],
)
def test_an_unknown_value_names_the_choices_and_exits_2(arguments: list[str], words: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert not result.stdout
    for word in words:
        assert word in result.stderr


def test_help_names_every_command_and_imports_none() -> None:
    lazy = {"later": LazyCommand("rayvisor.no_such_module:later", "Comes later.")}
    result = CliRunner().invoke(LazyGroup("group", lazy=lazy), ["--help"])
    assert result.exit_code == 0
    assert "later  Comes later." in result.stdout


def test_commands_added_the_plain_way_stand_beside_the_lazy_ones() -> None:
    group = LazyGroup("group", lazy={"chart": LazyCommand("rayvisor.cli.chart:chart", "Lazy.")})
    group.add_command(click.Command("plain", help="Not lazy.", callback=lambda: click.echo("done")))
    group.add_command(click.Command("secret", help="Not shown.", hidden=True))
    assert CliRunner().invoke(group, ["plain"]).stdout == "done\n"
    listing = CliRunner().invoke(group, ["--help"]).stdout
    assert "chart  Lazy." in listing
    assert "plain  Not lazy." in listing
    assert "secret" not in listing


def test_a_lazy_command_that_is_none_is_named() -> None:
    group = LazyGroup("group", lazy={"wrong": LazyCommand("rayvisor.cli.chart:CHARTS", "Wrong.")})
    result = CliRunner().invoke(group, ["wrong"])
    assert isinstance(result.exception, TypeError)
    assert "rayvisor.cli.chart:CHARTS" in str(result.exception)


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_command_can_be_imported(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name


@pytest.mark.parametrize("arguments", [["chart", "engine"], ["--help"]])
def test_no_engine_and_no_cluster_is_imported_for_a_chart(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from rayvisor.cli import main\n"
        f"main({arguments!r}, prog_name='rayvisor', standalone_mode=False)\n"
        "heavy = {'ray', 'vllm', 'torch', 'transformers', 'transitions'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
