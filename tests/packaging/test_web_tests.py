"""``make test-web``: a check that ``--require`` names fails where it did not run in full."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tools import web_tests
from tools.web_tests import CHECKS, Check

GRAPHVIZ = next(check for check in CHECKS if check.key == "graphviz")
RAN = {Path(check.file).stem: Counter(passed=2) for check in CHECKS}


def run(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    missing: str = "",
    status: int = 0,
    counts: Mapping[str, Counter[str]] = RAN,
) -> int:
    """Run the command with fake tools; ``missing`` says why Graphviz, and only Graphviz, is not there."""

    def prepare(check: Check, _seconds: float) -> tuple[Check, str, str]:
        return check, "", missing if check == GRAPHVIZ else ""

    def test(files: Sequence[str], _options: Sequence[str]) -> tuple[int, Mapping[str, Counter[str]]]:
        return status, {stem: counts[stem] for stem in (Path(file).stem for file in files)}

    monkeypatch.setattr(web_tests, "_prepare", prepare)
    monkeypatch.setattr(web_tests, "_test", test)
    monkeypatch.setattr(web_tests, "_document", lambda: (0, ""))
    monkeypatch.setattr(sys, "argv", ["web_tests.py", *arguments])
    return web_tests.main()


def test_a_tool_that_is_missing_is_named_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, missing="no Graphviz here") == 0
    assert "DID NOT RUN: no Graphviz here" in capsys.readouterr().out


def test_a_required_check_whose_tool_is_missing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--require", "graphviz,mermaid", missing="no Graphviz here") == 1
    printed = capsys.readouterr().err
    assert "graphviz is required, but did not run completely: no Graphviz here" in printed
    assert "mermaid" not in printed


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        (Counter[str](), "pytest reported none of its tests"),
        (Counter(passed=3, skipped=1), "1 skipped"),
    ],
)
def test_a_required_check_that_did_not_run_in_full_fails(
    outcomes: Counter[str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {**RAN, "test_graphviz": outcomes}
    assert run(monkeypatch, "--require", "graphviz", counts=counts) == 1
    assert why in capsys.readouterr().err
    assert run(monkeypatch, counts=counts) == 0


def test_required_checks_that_ran_leave_the_status_to_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ",".join([*(check.key for check in CHECKS), "docs"])
    assert run(monkeypatch, "--require", everything) == 0
    assert run(monkeypatch, "--require", everything, status=2) == 2


def test_the_site_cannot_be_required_together_with_options_for_pytest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--require", "docs", "-k", "graphviz") == 1
    assert "it does not run with options for pytest" in capsys.readouterr().err


def test_an_unknown_required_check_is_refused() -> None:
    assert web_tests._required("chromium,docs") == {"chromium", "docs"}
    with pytest.raises(
        argparse.ArgumentTypeError, match="no check is named 'chrome'; the checks are chromium, "
    ):
        web_tests._required("chrome")


def test_outcomes_are_read_from_the_report_of_pytest(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    case = '<testcase classname="tests.outside.test_dot" name="{}">{}</testcase>'
    cases = [
        case.format("passes", ""),
        case.format("fails", "<failure/>"),
        case.format("breaks", "<error/>"),
        case.format("is_skipped", "<skipped/>"),
        case.format("is_run_twice", "<failure/>") + case.format("is_run_twice", ""),
    ]
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", encoding="utf-8")
    assert web_tests._outcomes(report) == {"test_dot": Counter(passed=1, failed=3, skipped=1)}


def test_the_packages_it_installs_are_bound_by_the_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(web_tests, "_run", lambda command, _seconds: commands.append(command))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    web_tests._python("xmlschema")(60.0)
    install, imported = commands
    assert install[install.index("--constraint") + 1] == str(web_tests.CONSTRAINTS)
    assert any(word.startswith("xmlschema>=") for word in install)
    assert imported[-1] == "import xmlschema"
