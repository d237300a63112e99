"""What others wrote reaches a terminal escaped: no control sequence, and no forged line."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest
from rich.console import Console

from rayvisor import records as r
from rayvisor._edges.live.text import escaped
from rayvisor.cli._lines import record_line, tree_lines
from rayvisor.cli._watch.lines import Lines as WatchLines
from rayvisor.cli._watch.screen import picture
from rayvisor.cli._watch.tree_state import TreeState, Update
from rayvisor.demo.view import Lines
from rayvisor.faults import Cause, Fault, FaultClass

EVILS = [
    "\x1b[2J",
    "\x1b]0;t\x07",
    "a\n12:00:00 forged",
    "a\rb",
    "\x9b31m",
    "\u202egnp",
    "a\u2028b",
    "\x7f",
    "\x00",
]
NODE = {"kind": "engine", "state": "ALIVE", "leaf": "SERVING", "holds": [], "incarnation": 1}


def forms(evil: str) -> tuple[Update, dict[str, Any]]:
    """Return the same tree as the live page sends it and as ``status`` gets it."""
    root = {**NODE, "path": "", "kind": "supervisor", "due": None, "since": 0.0, "steps": [], "why": evil}
    child = {**root, "path": f"llm{evil}", "kind": "engine", "steps": [["ALIVE.SERVING", evil, 1, 0.0]]}
    fault: dict[str, Any] = {
        "id": 1, "at": 0.0, "class": "FATAL", "child": f"llm{evil}", "incarnation": 1,
        "root": evil, "log": evil,
        "phase": evil, "recovered": None, "ended": False,
        "decision": {"what": "restart", "delay": 0.0, "restarts": 1, "intensity": 1, "why": evil},
    }  # fmt: skip
    update = Update(
        "state",
        {"now": 1.0, "full": True, "nodes": [root, child], "order": ["", f"llm{evil}"], "faults": [fault]},
    )
    status = {**NODE, "path": "", "epoch": None, "uptime": None, "restarts": None, "children": []}
    last = {"root": evil, "log_file": evil, "fault_class": "FATAL", "incarnation": 1, "age": 1.0}
    return update, {**status, "children": [{**status, "path": f"llm{evil}", "url": evil, "fault": last}]}


def assert_clean(text: str, lines: int | None = None) -> None:
    assert lines is None or len(text.splitlines()) == lines
    for line in text.split("\n"):
        assert line == escaped(line)


@pytest.mark.parametrize("evil", EVILS)
def test_no_view_of_a_tree_prints_control_characters(evil: str) -> None:
    update, status = forms(evil)
    tree = TreeState()
    watched = WatchLines(tree)
    tree.take(update)
    for line in watched.news():
        assert_clean(line, 1)
    tree.take(Update("lost", why=evil))
    for line in watched.news():
        assert_clean(line, 1)
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(picture(tree, 200, 40))
    assert isinstance(console.file, io.StringIO)
    assert_clean(console.file.getvalue())
    assert "forged" not in [line.split()[0] for line in console.file.getvalue().splitlines() if line.split()]
    printed = [_plain(line) for line in tree_lines(status)]
    assert len(printed) == 5
    for line in printed:
        assert_clean(line, 1)


@pytest.mark.parametrize("evil", EVILS)
def test_no_record_prints_control_characters(evil: str) -> None:
    for form in (
        {
            "record": "StateChanged",
            "child": evil,
            "incarnation": 1,
            "before": evil,
            "after": "b",
            "event": evil,
        },
        {
            "record": "FaultSeen",
            "fault": {"child": evil, "root": evil, "fault_class": "x", "phase": evil, "log_file": evil},
        },
        {"record": "Other", "path": evil, evil: evil},
    ):
        assert_clean(_plain(record_line({**form, "time": 0.0})), 1)


@pytest.mark.parametrize("evil", EVILS)
def test_the_demo_prints_no_control_characters(evil: str) -> None:
    written: list[str] = []
    lines = Lines(written.append, "sim")
    fault = Fault(child=evil, incarnation=1, at=0.0, fault_class=FaultClass.FATAL, causes=(Cause("E", evil),))
    lines.record(r.FaultSeen(at=0.0, fault=fault))
    lines.stage(evil)
    assert len(written) == 3
    for line in written:
        assert_clean(line, 1)


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("a b", "\u4f60\u3000\u597d", "caf\u00e9\u00a0\u2502", "back\\slash"):
        assert escaped(text) == text


def _plain(line: str) -> str:
    """Return a line without the colours that we ourselves add."""
    return click.unstyle(line)
