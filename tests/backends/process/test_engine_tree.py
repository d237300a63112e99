"""The processes of one engine: found, watched, killed, proven gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayvisor._backends.process import engine_tree as module
from rayvisor._backends.process.engine_tree import TAG, ProcessTree, process_id
from tests.backends.driving import alive
from tests.waiting import until

# A parent with a child; both carry the title of something essential, and the parent waits for no one.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "test::Worker"])
time.sleep(60)
"""


@pytest.fixture
def tree() -> Iterator[ProcessTree]:
    made = ProcessTree(f"tag-{os.getpid()}")
    yield made
    made.kill()


def launch(
    tree: ProcessTree, code: str, title: str = "test::EngineCore", **env: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, title], env={**os.environ, TAG: tree.tag, **env})


async def wait_for_tree(tree: ProcessTree, count: int) -> None:
    async with asyncio.timeout(60):
        while len([each for each in tree.processes if "::" in each.name]) < count:
            await tree.scan()
            await asyncio.sleep(0.01)


async def end(tree: ProcessTree, *started: subprocess.Popen[bytes]) -> None:
    def reap() -> None:
        for each in started:
            each.poll()

    left = await tree.end(60, reap)
    tree.close()
    assert left == ()
    assert alive(tree.processes) == []


async def test_children_of_children_are_found_and_ended(tree: ProcessTree) -> None:
    parent = launch(tree, PARENT)
    await wait_for_tree(tree, 2)
    assert {each.name for each in tree.processes} == {"test::EngineCore", "test::Worker"}
    await end(tree, parent)


async def test_a_child_whose_parent_went_first_is_ended_too_though_it_was_never_seen(
    tree: ProcessTree,
) -> None:
    parent = launch(tree, PARENT)
    await until(lambda: module._descendants(parent.pid))
    orphan = process_id(module._descendants(parent.pid)[0])
    parent.kill()
    parent.wait()
    assert alive((orphan,)) == [orphan]
    assert tree.processes == ()
    await end(tree, parent)
    assert alive((orphan,)) == []


async def test_processes_of_another_engine_are_left_alone(tree: ProcessTree) -> None:
    other = launch(tree, "import time; time.sleep(60)", **{TAG: "another"})
    mine = launch(tree, "import time; time.sleep(60)")
    await wait_for_tree(tree, 1)
    await end(tree, mine)
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize("pidfds", [True, False], ids=["pidfd", "polling"])
async def test_a_death_is_seen_with_how_it_came(
    tree: ProcessTree, *, pidfds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfds:
        monkeypatch.delattr(os, "pidfd_open")
    process = launch(tree, "import time; time.sleep(60)")
    await wait_for_tree(tree, 1)
    process.kill()
    ended = await asyncio.wait_for(tree.first_death(), 60)
    assert (ended.process.pid, ended.signal, ended.exit_code) == (process.pid, signal.SIGKILL, None)
    await end(tree, process)


async def test_an_exit_is_told_from_a_signal(tree: ProcessTree) -> None:
    process = launch(tree, "import time; time.sleep(0.5); raise SystemExit(7)")
    await wait_for_tree(tree, 1)
    ended = await asyncio.wait_for(tree.first_death(), 60)
    assert (ended.signal, ended.exit_code) == (None, 7)
    await end(tree, process)


async def test_the_end_of_a_process_that_is_not_essential_is_no_death_and_is_forgotten(
    tree: ProcessTree,
) -> None:
    process = launch(tree, "import time; time.sleep(60)", title="compiler")
    await until(lambda: process.poll() is None)
    async with asyncio.timeout(60):
        while not tree.processes:
            await tree.scan()
    process.kill()
    process.wait()
    await tree.scan()
    assert tree.processes == ()
    assert tree.deaths == ()


async def test_a_process_between_fork_and_exec_is_not_taken_for_its_parent(tree: ProcessTree) -> None:
    # It goes by its parent's name for that moment; what it becomes may end as it likes.
    forking = (
        "import os, time\npid = os.fork()\ntime.sleep(60 if pid else 1)\nos.waitpid(pid, 0) if pid else 0"
    )
    process = launch(tree, forking)
    async with asyncio.timeout(60):
        while len(tree.processes) < 2:
            await tree.scan()
    assert sorted(each.name for each in tree.processes) == ["", "test::EngineCore"]
    async with asyncio.timeout(60):
        while len(tree.alive()) == 2:  # noqa: ASYNC110 - a process has no event
            await asyncio.sleep(0.01)
    await tree.scan()
    assert tree.deaths == ()
    await end(tree, process)


# Waits for a file, then goes by another title, with an environment that shows another tag.
RENAMED = """
import os, sys, time
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.01)
again = [sys.executable, "-c", "import time; time.sleep(60)", "test::EngineCore"]
os.execve(sys.executable, again, {**os.environ, "RAYVISOR_ENGINE": "overwritten"})
"""


async def test_a_recorded_process_is_known_by_its_new_title_though_its_tag_is_gone(
    tree: ProcessTree, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    process = launch(tree, RENAMED, "--multiprocessing-fork", GO=str(go))
    await wait_for_tree(tree, 1)
    assert [each.name for each in tree.processes] == ["starting::process"]
    go.touch()
    async with asyncio.timeout(60):
        while [each.name for each in tree.processes] != ["test::EngineCore"]:
            await tree.scan()
            await asyncio.sleep(0.01)
    process.kill()
    await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    await tree.scan()
    assert [each.name for each in tree.processes] == ["test::EngineCore"], "a zombie shows no title"
    await end(tree, process)


async def test_a_process_whose_title_cannot_be_set_is_known_by_the_name_of_its_first_thread(
    tree: ProcessTree,
) -> None:
    code = "import time; open('/proc/self/comm', 'w').write('::EngineCore'); time.sleep(60)"
    process = launch(tree, code, "--multiprocessing-fork")
    async with asyncio.timeout(60):
        while [each.name for each in tree.processes] != ["::EngineCore"]:
            await tree.scan()
            await asyncio.sleep(0.01)
    await end(tree, process)


async def test_a_process_that_got_the_pid_second_is_not_touched(tree: ProcessTree) -> None:
    process = launch(tree, "import time; time.sleep(60)")
    await wait_for_tree(tree, 1)
    (found,) = tree.processes
    held = tree._held[found.pid]
    held.close()
    held.process = found._replace(start_ticks=found.start_ticks - 1)
    assert not held.alive()
    held.kill()
    await asyncio.sleep(0.1)
    assert process.poll() is None
    held.process = found
    await end(tree, process)
