"""Processes that end themselves: which errors do it, what is left, what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rayvisor as rv
from rayvisor._backends.process.identity import identify
from rayvisor._backends.process.last_words import Folder
from rayvisor._core.tasks.matching import find, matcher

PROGRAM = """
import asyncio, logging.handlers, os, signal, subprocess, sys, time
import rayvisor as rv

class Dead(Exception): pass
class Deader(Dead): pass

fatal = rv.fatal("__main__.Dead", name="guarded")

def crash(kind):
    if kind == "direct": raise Deader("gone")
    if kind == "cause": raise RuntimeError("request failed") from Dead("gone")
    if kind == "group": raise ExceptionGroup("two", [ValueError("a"), Dead("gone")])
    if kind == "context":
        try: raise Dead("gone")
        except Dead: raise KeyError("while handling")
    if kind == "harmless": raise ValueError("one bad row")
    if kind == "interrupt":
        try: raise Dead("gone")
        except Dead: raise KeyboardInterrupt

@fatal
def plain(kind): crash(kind)

@fatal
def generator(kind):
    yield 1
    crash(kind)

@fatal
async def coroutine(kind):
    await asyncio.sleep(0)
    crash(kind)

@fatal
async def stream(kind):
    yield 1
    crash(kind)

@fatal
class Udf:
    def __call__(self, kind): crash(kind)
    def helper(self, kind): crash(kind)

def block(kind):
    with fatal: crash(kind)

async def drain(kind):
    async for _ in stream(kind): pass

SHAPES = {
    "plain": plain, "generator": lambda kind: list(generator(kind)),
    "coroutine": lambda kind: asyncio.run(coroutine(kind)), "stream": lambda kind: asyncio.run(drain(kind)),
    "class": lambda kind: Udf()(kind), "method": lambda kind: Udf().helper(kind), "block": block,
}
"""

RUN = """
shape, kind = sys.argv[1:3]
child = subprocess.Popen(
    ["sh", "-c", "sleep 600 & echo $!; sleep 600"], stdout=subprocess.PIPE, text=True,
    start_new_session=True,
)
print(child.pid, child.stdout.readline().strip(), flush=True)
handler = logging.handlers.MemoryHandler(1000, target=logging.FileHandler(sys.argv[3]))
logging.getLogger().addHandler(handler)
logging.warning("kept in memory")
sys.stdout.write("unflushed")
try:
    SHAPES[shape](kind)
except Exception as error:  # continue on error
    print(" swallowed", type(error).__name__)
except KeyboardInterrupt:
    print(" interrupted")
os.killpg(child.pid, signal.SIGKILL)
"""


def run(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + text, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )


def gone(pid: int) -> bool:
    return identify(pid) is None


def words_of(said: str) -> list[str]:
    """Return the last words that the process left for its parent, which is this process."""
    pids = {
        line.rpartition(" ")[2] for line in said.splitlines() if line.startswith("rayvisor: guarded ends")
    }
    return [str(words.causes) for words in Folder().read("guarded") if str(words.pid) in pids]


CASES = [
    ("plain", "direct"),
    ("generator", "cause"),
    ("coroutine", "group"),
    ("stream", "context"),
    ("class", "direct"),
    ("method", "cause"),
    ("block", "direct"),
]


@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_a_fatal_error_is_never_swallowed_and_nothing_of_the_process_stays(
    shape: str, kind: str, tmp_path: Path
) -> None:
    done = run(RUN, shape, kind, str(tmp_path / "log"))
    assert done.returncode == 1, done.stderr
    assert "swallowed" not in done.stdout
    first, _, rest = done.stdout.partition("\n")
    assert rest == "unflushed"
    pids = [int(word) for word in first.split()]
    assert all(gone(pid) for pid in pids)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "kept in memory\n"
    assert "gone" in done.stderr
    assert "guarded ends its process" in done.stderr
    for pid in pids:
        assert f"({pid})" in done.stderr
    assert words_of(done.stderr)


@pytest.mark.parametrize(
    ("kind", "said"), [("harmless", "swallowed ValueError"), ("interrupt", "interrupted")]
)
def test_other_errors_and_interrupts_pass_as_they_are(kind: str, said: str, tmp_path: Path) -> None:
    done = run(RUN, "plain", kind, str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_nothing_that_hangs_or_fails_holds_the_end_up() -> None:
    done = run(
        """
class Slow:
    def write(self, text): time.sleep(600)
    def flush(self): time.sleep(600)
sys.stderr = Slow()
rv.fatal(Dead, exit_code=7, timeout=0.5)(crash)("direct")
"""
    )
    assert done.returncode == 7


def test_as_many_crashes_as_are_allowed_then_the_error_itself() -> None:
    text = """
@rv.fatal(Dead, name=sys.argv[1], limit=2)
def guarded(): raise Dead("gone")
try:
    guarded()
except Dead as error:
    print(len(rv.last_words(sys.argv[1])), error.__notes__)
"""
    name = f"limited-{os.getpid()}"
    assert [run(text, name).returncode for _ in range(2)] == [1, 1]
    third = run(text, name)
    assert (third.returncode, third.stdout.split()[0]) == (0, "2")
    assert "has ended 2 processes, limit=2" in third.stdout


def test_what_nobody_is_left_to_read_is_cleared_away() -> None:
    folder = Folder._of(os.getpid())
    stale = folder.with_name("4194305-1")  # no process has such a pid
    stale.mkdir(parents=True, exist_ok=True)
    assert run('rv.fatal(Dead, name="cleared")(crash)("direct")').returncode == 1
    assert not stale.exists()
    assert [words.name for words in Folder().read("cleared")] == ["cleared"]


def test_a_type_or_a_dotted_name_is_found_anywhere_in_the_chain() -> None:
    outer = RuntimeError("a")
    outer.__cause__ = ConnectionResetError("b")
    for error in (ConnectionError, "builtins.ConnectionError", "builtins.ConnectionResetError"):
        assert find(outer, matcher([error])) is outer.__cause__
    assert find(outer, matcher(["vllm.v1.engine.exceptions.EngineDeadError", KeyError])) is None
    outer.__cause__.__cause__ = outer  # a ring
    assert find(outer, matcher([KeyError])) is None
    # A name that a package re-exports: json.JSONDecodeError is json.decoder's.
    wrong = json.JSONDecodeError("c", "", 0)
    assert find(wrong, matcher(["json.JSONDecodeError"])) is wrong
    assert find(wrong, matcher(["json.decoder.JSONDecodeError"])) is wrong


@pytest.mark.parametrize(
    ("errors", "values", "message"),
    [
        ((), {}, "must contain at least one error"),
        (("EngineDeadError",), {}, "or a dotted name"),
        ((3,), {}, "errors=3"),
        ((int,), {}, "errors=<class 'int'>"),
        ((KeyError,), {"limit": 0}, "limit=0"),
        ((KeyError,), {"exit_code": 0}, "exit_code=0"),
        ((KeyError,), {"exit_code": 256}, "exit_code=256"),
        ((KeyError,), {"timeout": 0}, "timeout=0"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(errors: Any, values: Any, message: str) -> None:
    with pytest.raises(rv.SpecError, match=message):
        rv.fatal(*errors, **values)


def test_what_cannot_be_guarded_is_refused() -> None:
    class Empty:
        pass

    for wrong in (Empty, 3):
        with pytest.raises(rv.SpecError, match="target="):
            rv.fatal(KeyError)(wrong)  # type: ignore[type-var]
