"""``rayvisor status --watch``: the picture, the lines, and the real command on a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from rich.console import Console

import rayvisor as rv
from rayvisor.cli import main
from rayvisor.cli._watch.lines import Lines
from rayvisor.cli._watch.screen import picture
from rayvisor.cli._watch.tree_state import TreeState, Update

COMMAND = [sys.executable, "-c", "from rayvisor.cli import main; main()", "status", "--watch"]
NOW = 1_000_000.0


def node(path: str, place: str = "ALIVE.SERVING", **more: Any) -> dict[str, Any]:
    state, _, leaf = place.partition(".")
    plain = {"path": path, "kind": "engine", "state": state, "leaf": leaf, "holds": [], "incarnation": 1}
    return {**plain, "since": NOW - 61.0, "due": None, "steps": [], **more}


def fault(**more: Any) -> dict[str, Any]:
    plain = {
        "id": 1,
        "child": "llm/1",
        "incarnation": 1,
        "at": NOW - 5.0,
        "class": "FATAL",
        "phase": "serving",
    }
    said = {"what": "restart", "why": "one_for_one", "delay": 6.0, "restarts": 1, "intensity": 5}
    return {
        **plain,
        "root": "OSError: full",
        "log": "",
        "decision": said,
        "recovered": None,
        "ended": False,
        **more,
    }


def tree(*children: dict[str, Any], faults: tuple[dict[str, Any], ...] = ()) -> Update:
    root = node("", "RUNNING", kind="supervisor", incarnation=0, restarts=[1, 3, 900.0])
    nodes = [root, *children]
    order = [each["path"] for each in nodes]
    run = {"over": False}
    return Update(
        "state", {"now": NOW, "full": True, "run": run, "order": order, "nodes": nodes, "faults": faults}
    )


def change(*nodes: dict[str, Any], faults: tuple[dict[str, Any], ...] = ()) -> Update:
    return Update("state", {"now": NOW, "full": False, "nodes": nodes, "faults": faults})


POOL = {"waiting": 2, "in_flight": 3, "finished": 7, "failed": 1, "replayed": 4, "tokens": 900, "rate": 81.5}


def known(*told: Update, path: str = "") -> TreeState:
    made = TreeState(path, lambda: NOW)
    for each in told:
        made.take(each)
    return made


def drawn(of: TreeState, width: int = 120, height: int = 30, **options: Any) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, height=height, color_system=None).print(
        picture(of, width, height, **options)
    )
    return text.getvalue().splitlines()


def test_the_picture_has_the_facts_of_the_live_page() -> None:
    waiting = node(
        "llm/1", "RESTARTING.BACKOFF", due=NOW + 3.25, since=None, holds=["REQUESTED"], incarnation=2
    )
    pool = node("llm", kind="engine_pool", requests=POOL, restarts=[1, 5, 3600.0])
    lines = drawn(known(tree(pool, waiting, node("llm/2"), faults=(fault(),))))
    assert lines[0].startswith("rayvisor  RUNNING  up 1 min 1 s  live")
    assert "tokens/s 82   in flight 3   waiting 2   replayed 4   finished 7   lost 1" in lines[1]
    rows = {line.split()[0]: line for line in lines[3:8]}
    assert "1 of 3 in 15 min" in rows["tree"]
    assert "1 of 5 in 1 h" in rows["llm"]
    assert "3 in flight, 2 waiting" in rows["llm"]
    assert re.search(r"RESTARTING.BACKOFF \+REQUESTED in 3.2 s +2 ", rows["1"])
    assert "FATAL llm/1 #1 OSError: full" in lines[-2]
    assert "decided: restart after 6.00 s (one_for_one; 1 of 5 restarts used)" in lines[-1]
    again = fault(recovered=1.5)
    assert "recovered after 1.5 s" in drawn(known(tree(pool, waiting, faults=(again,))))[-1]


@pytest.mark.parametrize("height", [8, 20, 60])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_picture_fits_and_shows_first_who_is_not_well(width: int, height: int) -> None:
    children = [node(f"side/c{number:03}") for number in range(200)]
    children[150] = node("side/c150", "RESTARTING.STOPPING")
    lines = drawn(known(tree(node("side"), *children, faults=(fault(),))), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height - 1, 11)
    assert any("c150" in line for line in lines)
    assert any(re.search(r"and \d+ more, all of them serving", line) for line in lines)


def test_a_tree_that_goes_away_or_comes_back_is_said() -> None:
    of = known(tree(node("a")))
    of.take(Update("lost", why="nobody listens there any more"))
    assert "no connection since" in drawn(of)[0]
    assert "nobody listens there any more" in drawn(of)[0]
    of.take(Update("there"))
    assert "RUNNING  up 1 min 1 s  live" in drawn(of)[0]
    of.take(Update("over"))
    of.take(Update("lost", why="no tree runs here"))
    assert "the tree has ended" in drawn(of)[0]
    assert any("SERVING" in line for line in drawn(of))
    of.take(tree(node("b")))
    assert "RUNNING  up 1 min 1 s  live" in drawn(of)[0]
    assert "as it was at" in drawn(of, last=True)[0]


def test_of_a_tree_that_is_not_seen_the_times_stand_still() -> None:
    clock = [NOW]
    of = TreeState("", lambda: clock[0])
    of.take(tree(node("a")))
    of.take(Update("lost", why="no answer within 12 s"))
    clock[0] += 60.0
    assert any("1 min 1 s" in line for line in drawn(of))
    of.take(Update("there"))
    assert any("2 min 1 s" in line for line in drawn(of))


def test_what_happens_while_the_table_is_written_is_said_after_it() -> None:
    up = ["ALIVE.SERVING", "started", 1, NOW - 9.0]
    of = known(tree(node("a", steps=[up])))
    written = Lines(of).news()
    while "a " not in next(written):
        pass
    of.take(change(node("a", incarnation=2, steps=[up, ["ALIVE.SERVING", "started", 2, NOW - 1.0]])))
    (rest,) = written
    assert "a #2 " in rest


def test_lines_say_each_thing_once_and_a_new_tree_afresh() -> None:
    of = known()
    lines = Lines(of)

    def news(told: Update) -> list[str]:
        of.take(told)
        return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines.news()]

    first = news(tree(node("a", steps=[["ALIVE.SERVING", "started", 1, NOW - 9.0]])))
    assert [line.split()[0] for line in first] == ["NAME", "tree", "a"]
    steps = [["ALIVE.SERVING", "started", 1, NOW - 9.0], ["RESTARTING.BACKOFF", "fault", 1, NOW - 4.0]]
    down = node("a", "RESTARTING.BACKOFF", steps=steps, due=NOW + 2.0)
    assert news(change(down, faults=(fault(child="a"),))) == [
        "a #1           FAULT OSError: full (FATAL, while serving)",
        "a #1           decided: restart after 6.00 s (one_for_one; 1 of 5 restarts used)",
        "a #1           RESTARTING.BACKOFF (fault, starts again in 6.0 s)",
    ]
    assert news(change(down)) == []
    assert news(change(faults=(fault(child="a", recovered=2.0),))) == ["a #1           recovered after 2.0 s"]
    assert "has ended" in news(Update("over"))[0]
    assert news(Update("lost", why="no tree runs here")) == []
    assert [line.split()[0] for line in news(tree(node("b")))] == ["tree", "NAME", "tree", "b"]


def test_steps_within_one_millisecond_are_all_said() -> None:
    up = ["ALIVE.SERVING", "started", 1, NOW - 9.0]
    stopped = ["DEAD.STOPPED", "stopped", 1, NOW]
    again = [["RESTARTING.STARTING", "start", 2, NOW], ["ALIVE.SERVING", "started", 2, NOW]]
    of = known(tree(node("a", steps=[up])))
    lines = Lines(of)
    assert len(list(lines.news())) == 3
    for steps, new in (([up, stopped], [stopped]), ([up, stopped, *again], again), ([stopped, *again], [])):
        of.take(change(node("a", steps=steps)))
        assert [line.split()[-2:] for line in lines.news()] == [[step[0], f"({step[1]})"] for step in new]


def test_of_a_path_only_what_is_below_it_is_shown() -> None:
    of = known(
        tree(node("llm"), node("llm/1"), node("llm2"), faults=(fault(), fault(id=2, child="llm2"))),
        path="llm",
    )
    assert [each["path"] for each in of.nodes] == ["llm", "llm/1"]
    assert [each["id"] for each in of.faults] == [1]
    assert not of.has_lost_path()
    of.take(tree(node("x")))
    assert "llm is not in the tree now; its children are: x" in "\n".join(drawn(of))


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAYVISOR_CONTROL_DIR", str(tmp_path / "control"))
    monkeypatch.delenv("RAYVISOR_SOCKET", raising=False)
    children = [rv.coroutine(name, anyio.sleep_forever) for name in ("a", "b")]
    with rv.run_in_thread(
        rv.SupervisorSpec(children=children), local=True, control=True, handle_signals=False
    ) as sup:
        yield sup


@contextmanager
def started(**options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(COMMAND, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def until(read: Callable[[], bytes], wanted: bytes, seconds: float = 120.0) -> bytes:
    late, got = time.monotonic() + seconds, b""
    while wanted not in got:
        assert time.monotonic() < late, got
        part = read()
        assert part, got
        got += part
    return got


@pytest.mark.usefixtures("running")
def test_on_a_terminal_it_draws_until_ctrl_c_and_leaves_the_terminal_as_it_was() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    size = {"COLUMNS", "LINES"}  # pytest-xdist sets a small terminal size in its workers
    env = {name: value for name, value in os.environ.items() if name not in size}
    env |= {"TERM": "xterm-256color", "NO_COLOR": "1"}
    with started(stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)

        def read() -> bytes:
            try:
                return os.read(ours, 65536)
            except OSError:
                return b""

        seen = until(read, b"ALIVE.SERVING")
        assert b"\x1b[?1049h" in seen
        process.send_signal(signal.SIGINT)
        rest = until(read, b"as it was at")
        while part := read():
            rest += part
        assert process.wait(60) == 0
    os.close(ours)
    assert b"\x1b[?1049l" in rest
    assert b"\x1b[?25h" in rest
    assert not re.search(rb"\x1b\[[\d;]*3\d", seen + rest)  # no colour
    assert b"Traceback" not in seen + rest


def test_elsewhere_it_says_what_happens_line_by_line(running: Any) -> None:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with started(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:
        assert process.stdout is not None
        seen = until(process.stdout.readline, b"b ")
        running.restart("a")
        seen += until(process.stdout.readline, b"#2")
        assert CliRunner().invoke(main, ["stop"]).exit_code == 0
        seen += until(process.stdout.readline, b"has ended")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert b"\x1b" not in seen


@pytest.mark.usefixtures("running")
def test_a_path_that_is_not_there_is_one_line_and_exit_status_1() -> None:
    done = subprocess.run([*COMMAND, "nobody"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: no child has the id 'nobody'; there are: a, b\n"
