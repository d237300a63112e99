"""Every block of Python in the documentation runs, and so does every example."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor.config import load_tree
from rayvisor.demo.text import continuation
from tests.docs.pages import PAGES, ROOT, TRANSLATIONS, Block, blocks

SIMULATED: Mapping[str, str] = {
    "from rayvisor.demo.model import ensure_model": "ensure_model = str",
    "engine_args=ENGINE, num_cpus=1": 'engine="sim", engine_args={}',
    "engine_args=engine, num_cpus=1": 'engine="sim", engine_args={}',
    "rv.Supervisor(SPEC)": "rv.Supervisor(SPEC, local=True)",
    "children=[pool]))": "children=[pool]), local=True)",
}
"""What is put in place of what, so that a program for the real engine runs with the simulated one."""

EXAMPLES = {
    "blocking.py": ["Usage(prompt_tokens=5, "],
    "hooks.py": ["llm/1 incarnation 2: RESTARTING.STARTING -> ALIVE.SERVING", "4 tokens after the kill"],
    "recovery.py": ["PAUSED.FAULTED       in place", "all texts are the same as without a fault"],
    "rl_rollouts.py": ["in the middle of the step", "step 3: 6 samples, all from weights 3, in "],
    "server.py": ["same URL: True", "cause: ProcessKilled: EngineCore"],
    "actor_and_pool.py": ["supervisor for: ", "supervisor of supervisors for: "],
}
"""Those that bring a simulated engine, run as they are, and words of what they print."""

ATTACHED = {
    "bring_up.py": ["up: [0, 1, 2]", "crashed during start: 1"],
    "tasks.py": [
        "shard 7, loaded the 3rd time SUCCEEDED",
        "attempt 1: FAILED TASK_EXECUTION_EXCEPTION (Cause(type='ConnectionResetError'",
        "attempt 2: FAILED WORKER_DIED",
        "hang took longer than timeout=1 s: it was interrupted -> CANCELLED",
    ],
}
"""Those that use Ray themselves, run on the one that is there."""

ELSEWHERE = ["exit_types.py", "ray_data.py"]
"""Those that tests/fatal runs."""

PYTHON = [block for page in PAGES if page not in TRANSLATIONS for block in blocks(page, "python")]


def _is_fragment(block: Block) -> bool:
    """Whether it is what stands inside ``async with rv.Supervisor(...) as sup``."""
    return "sup[" in block.text and "as sup:" not in block.text


PROGRAMS = [block for block in PYTHON if not _is_fragment(block) and "import ray\n" not in block.text]
ON_RAY = [block for block in PYTHON if "import ray\n" in block.text]
TREES = [block for page in PAGES for block in blocks(page, "toml") if "[[children]]" in block.text]
FRAGMENTS = [block for block in PYTHON if _is_fragment(block)]


def _compile(block: Block, text: str) -> CodeType:
    """Compile a block; names in tracebacks are those of the page."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile("\n" * (block.line - 1) + text, block.page, "exec", flags, dont_inherit=True)
    return code


def _simulated(text: str) -> str:
    for real, simulated in SIMULATED.items():
        text = text.replace(real, simulated)
    return text


@pytest.fixture
async def sup() -> AsyncIterator[rv.Supervisor]:
    """The tree that fragments stand in."""
    spec = rv.SupervisorSpec(children=[rv.engine_pool("llm", engine="sim", engine_args={})])
    supervisor = rv.Supervisor(spec, local=True, handle_signals=False)
    up, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        # One task enters and leaves: a fixture's two halves run in different ones.
        async with supervisor:
            up.set()
            await done.wait()

    holding = asyncio.create_task(hold())
    waiting = asyncio.create_task(up.wait())
    await asyncio.wait({holding, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if holding.done():
        holding.result()
    yield supervisor
    done.set()
    await holding


def test_there_is_code_of_each_kind() -> None:
    assert len(PROGRAMS) > 3
    assert len(FRAGMENTS) > 2


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_a_program_of_the_documentation_runs(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    code = _compile(block, _simulated(block.text))
    assert not code.co_flags & inspect.CO_COROUTINE, "it awaits outside of a function"
    exec(code, {"__name__": "__main__"})  # noqa: S102 - it is our own
    assert ("print(" in block.text) == bool(capsys.readouterr().out)


@pytest.mark.ray
@pytest.mark.parametrize("block", ON_RAY, ids=lambda block: block.name)
def test_a_program_of_the_documentation_runs_on_a_ray_that_is_there(
    block: Block, cluster_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster_address)
    program = tmp_path / "program.py"
    program.write_text(block.text, encoding="utf-8")
    assert _run([str(program)], attach=True)


@pytest.mark.parametrize("block", TREES, ids=lambda block: block.name)
def test_a_tree_in_the_documentation_can_be_read(
    block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    search = ModuleType("search")  # the module of the reader's own that a page names
    search.Index = type("Index", (), dict.fromkeys(("ping", "hold", "go_on", "flush"), len))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "search", search)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "tree.toml").write_text(block.text, encoding="utf-8")
    assert load_tree(tmp_path / "tree.toml").spec.children


@pytest.mark.parametrize("block", FRAGMENTS, ids=lambda block: block.name)
async def test_a_fragment_of_the_documentation_runs_inside_a_supervisor(
    block: Block, sup: rv.Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _compile(block, block.text)
    names: dict[str, Any] = {"sup": sup, "rv": rv}
    with anyio.fail_after(60.0):
        result = eval(code, names)  # noqa: S307 - as above
        if code.co_flags & inspect.CO_COROUTINE:
            await result
    assert ("print(" in block.text) == bool(capsys.readouterr().out)


def test_every_example_is_run_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        *EXAMPLES,
        *ATTACHED,
        *ELSEWHERE,
        "embed.py",
    }


@pytest.mark.ray
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_is(name: str) -> None:
    printed = _run([str(ROOT / "examples" / name)])
    for words in EXAMPLES[name]:
        assert words in printed


@pytest.mark.ray
@pytest.mark.parametrize("name", ATTACHED)
def test_an_example_runs_on_a_ray_that_is_there(
    name: str, cluster_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster_address)
    printed = _run([str(ROOT / "examples" / name)], attach=True)
    for words in ATTACHED[name]:
        assert words in printed


def test_the_example_for_the_real_engine_runs_with_the_simulated_one(tmp_path: Path) -> None:
    program = tmp_path / "embed.py"
    program.write_text(
        _simulated((ROOT / "examples" / "embed.py").read_text(encoding="utf-8")), encoding="utf-8"
    )
    assert "local=True" in program.read_text(encoding="utf-8")
    assert _run([str(program)])


@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_code_of_the_readme_runs_as_it_stands(trained_model: Path, tmp_path: Path) -> None:
    assert trained_model.is_dir()  # made before the clock runs
    (block,) = blocks(ROOT / "README.md", "python")
    program = tmp_path / "ten_lines.py"
    program.write_text(block.text, encoding="utf-8")
    printed = _run([str(program)], seconds=240.0)
    expected = continuation("Alice was beginning to get very tired of").encode()[:300]
    assert expected.decode(errors="ignore") in printed


def _run(arguments: list[str], seconds: float = 120.0, *, attach: bool = False) -> str:
    """Run a program as a user does, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if attach or name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=30.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, said
    return printed
