from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from rayvisor.cli import LazyCommand, LazyGroup, main
from statecharts import formats, render
from statecharts.lifecycles import CHARTS


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
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
