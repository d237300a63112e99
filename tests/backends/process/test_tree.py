from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import psutil
import pytest

from rayvisor._backends.process import reaper
from rayvisor._backends.process.identity import alive, identify
from rayvisor._backends.process.killing import end_processes
from rayvisor._backends.process.tree import MARKER, kill, marked, tree
from rayvisor._core.protocol.wire import ProcessId
from tests.waiting import until_now

Spawn = Callable[..., subprocess.Popen[bytes]]
KEY = f"tests/{os.getpid()}/tree"
"""Unique per run: processes with a key are found on the whole machine, where other tests may run."""


def known(pid: int) -> ProcessId:
    process = identify(pid)
    assert process is not None
    return process


def read_pid(child: subprocess.Popen[bytes]) -> int:
    assert child.stdout is not None
    return int(child.stdout.readline())


def test_a_pid_that_was_given_to_somebody_else_is_not_the_same_process(spawn: Spawn, stubborn: str) -> None:
    child = spawn(stubborn)
    process = known(child.pid)
    earlier = process._replace(start_ticks=process.start_ticks - 1)
    assert alive(process)
    assert not alive(earlier)
    assert not kill(earlier)
    assert child.poll() is None


def test_a_zombie_counts_as_gone(spawn: Spawn, stubborn: str) -> None:
    child = spawn(stubborn)
    process = known(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    until_now(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not alive(process)
    assert identify(child.pid) is None


def test_the_tree_is_found_with_and_without_the_kernels_lists_of_children(
    spawn: Spawn, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = spawn(family)
    grandchild = read_pid(child)
    assert [process.pid for process in tree(known(child.pid))] == [grandchild]
    monkeypatch.setattr(reaper, "children_of", lambda _: None)
    assert [process.pid for process in tree(known(child.pid))] == [grandchild]


async def test_a_whole_tree_is_ended_and_proven_gone_though_it_ignores_sigterm_and_one_is_stopped(
    spawn: Spawn, family: str
) -> None:
    child = spawn(family)
    grandchild = known(read_pid(child))
    os.kill(grandchild.pid, signal.SIGSTOP)
    root = known(child.pid)
    report = await end_processes([root], key=None, timeout=30.0)
    assert report.verified
    assert report.left == ()
    assert {process.pid for process in report.killed} == {root.pid, grandchild.pid}
    assert not alive(root)
    assert not alive(grandchild)


async def test_an_orphan_is_found_by_the_key_in_its_environment(spawn: Spawn, family: str) -> None:
    child = spawn(family, env={**os.environ, MARKER: f"{KEY}/orphan"})
    orphan = known(read_pid(child))
    child.kill()
    child.wait()
    until_now(lambda: psutil.Process(orphan.pid).ppid() != child.pid)
    assert [process.pid for process in marked(f"{KEY}/orphan")] == [orphan.pid]
    assert marked(f"{KEY}/orpha") == ()
    report = await end_processes([], key=f"{KEY}/orphan", timeout=30.0)
    assert report.verified
    assert [process.pid for process in report.killed] == [orphan.pid]


async def test_what_cannot_be_ended_in_time_is_reported_and_not_verified(
    spawn: Spawn, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = spawn(stubborn)
    process = known(child.pid)
    monkeypatch.setattr(reaper, "send", lambda *_: False)
    report = await end_processes([process], key=None, timeout=0.1)
    assert not report.verified
    assert report.left == (process,)


async def test_nothing_to_end_is_proof_enough() -> None:
    report = await end_processes([], key=f"{KEY}/nobody", timeout=30.0)
    assert report.verified
    assert report.killed == ()
