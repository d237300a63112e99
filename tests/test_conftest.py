"""Only tests of real Ray and real vLLM are run a second time, and the summary says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import conftest

ROOT = Path(__file__).parents[1]

ONCE = """
from pathlib import Path

import pytest

@pytest.mark.flaky(reruns=1)
def test_fails_once():
    mark = Path(__file__).with_name("ran")
    first = not mark.exists()
    mark.touch()
    assert not first, "the first run failed"
"""


def item(*, marks: tuple[str, ...] = (), fixtures: tuple[str, ...] = (), **params: str) -> pytest.Item:
    made: Any = SimpleNamespace(
        path=Path("tests/backends/ray/test_calls.py"),
        fixturenames=fixtures,
        get_closest_marker=lambda name: name if name in marks else None,
    )
    if params:
        made.callspec = SimpleNamespace(params=params)
    return cast("pytest.Item", made)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (item(), False),
        (item(fixtures=("tmp_path", "random_model")), False),
        (item(marks=("ray",)), True),
        (item(marks=("engine",)), True),
        (item(fixtures=("cluster_address",)), True),
        (item(fixtures=("trained_model",)), True),
        (item(fixtures=("keeper", "kind"), kind="vllm"), True),
        (item(fixtures=("keeper", "kind"), kind="sim"), False),
        (item(marks=("ray",), fixtures=("keeper", "kind"), kind="sim"), True),
    ],
)
def test_a_test_is_real_by_its_marks_and_fixtures(test: pytest.Item, *, expected: bool) -> None:
    assert conftest._is_real(test, conftest._group(test)) is expected


def test_real_tests_are_run_once_more_and_others_are_not(request: pytest.FixtureRequest) -> None:
    for test in request.session.items:
        flaky = test.get_closest_marker("flaky")
        assert (flaky is not None) is conftest._is_real(test, conftest._group(test)), test.nodeid
        assert flaky is None or flaky.kwargs == {"reruns": 1}


@pytest.mark.parametrize(
    "options", [(), ("--numprocesses", "1", "--dist", "loadgroup")], ids=["one", "xdist"]
)
def test_the_summary_counts_reruns_and_shows_why_the_first_run_failed(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "test_once.py").write_text(ONCE)
    settings = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, *options, str(tmp_path)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AssertionError: the first run failed" in done.stdout
    assert "1 passed, 1 rerun" in done.stdout.splitlines()[-1]
