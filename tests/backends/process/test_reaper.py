from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil

from rayvisor._backends.process.identity import identify
from rayvisor._backends.process.tree import MARKER
from tests.waiting import until_now

Spawn = Callable[..., subprocess.Popen[bytes]]
KEY = f"tests/{os.getpid()}/reaper"
"""Unique per run: processes with a key are found on the whole machine, where other tests may run."""

HOST = """
import os, subprocess, sys, time
from rayvisor._backends.process.guard import Guard
guard = Guard(sys.argv[1], with_parent=len(sys.argv) > 3)
reaper = guard.wait_ready()
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdout=subprocess.PIPE)
grandchild = int(child.stdout.readline())
print(reaper, child.pid, grandchild, flush=True)
sys.stdin.readline()
guard.bye()
print("bye", flush=True)
sys.stdin.readline()
"""

PARENT = """
import subprocess, sys
host = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
print(host.pid, *host.stdout.readline().decode().split(), flush=True)
host.wait()
"""

DAEMON = """
import os, subprocess, sys, time
if os.fork():
    os._exit(0)
os.setsid()
child = os.fork() or os.getpid()
print(os.getpid(), flush=True) if child != os.getpid() else None
time.sleep(600)
"""


def start(spawn: Spawn, key: str, program: str) -> tuple[subprocess.Popen[bytes], int, int, int]:
    host = spawn(HOST, key, program, start_new_session=True)
    assert host.stdout is not None
    reaper, child, grandchild = (int(word) for word in host.stdout.readline().split())
    return host, reaper, child, grandchild


def gone(*pids: int) -> bool:
    return all(identify(pid) is None for pid in pids)


def test_when_a_host_is_killed_its_tree_is_gone_within_seconds_one_of_it_being_stopped(
    spawn: Spawn, family: str
) -> None:
    host, reaper, child, grandchild = start(spawn, f"{KEY}/kill", family)
    os.kill(grandchild, signal.SIGSTOP)
    began = time.monotonic()
    host.kill()
    until_now(lambda: gone(child, grandchild))
    assert time.monotonic() - began < 20  # on a machine that is busy with other things
    until_now(lambda: gone(reaper))


def test_a_host_goes_with_its_parent_when_that_was_asked_for(spawn: Spawn, family: str) -> None:
    parent = spawn(PARENT, HOST, f"{KEY}/parent", family, "with parent", start_new_session=True)
    assert parent.stdout is not None
    host, reaper, child, grandchild = (int(word) for word in parent.stdout.readline().split())
    parent.kill()
    until_now(lambda: gone(host, child, grandchild, reaper))


def test_what_left_the_tree_long_ago_is_found_by_its_key(spawn: Spawn) -> None:
    host, _, child, daemon = start(spawn, f"{KEY}/daemon", DAEMON)
    until_now(lambda: gone(child))
    assert not gone(daemon)
    host.kill()
    until_now(lambda: gone(daemon))


def test_a_reaper_is_nobodys_child_in_a_session_of_its_own_and_carries_no_key(
    spawn: Spawn, family: str
) -> None:
    host, reaper, *_ = start(spawn, f"{KEY}/session", family)
    assert os.getsid(reaper) != os.getsid(host.pid)
    assert reaper not in [process.pid for process in psutil.Process(host.pid).children(recursive=True)]
    assert MARKER not in psutil.Process(reaper).environ()


def test_ctrl_c_and_sigterm_do_not_end_a_reaper(spawn: Spawn, family: str) -> None:
    host, reaper, child, grandchild = start(spawn, f"{KEY}/interrupt", family)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(reaper, number)
    host.kill()
    until_now(lambda: gone(child, grandchild, reaper))


def test_after_a_farewell_the_reaper_leaves_and_kills_nothing(spawn: Spawn, family: str) -> None:
    host, reaper, child, grandchild = start(spawn, f"{KEY}/bye", family)
    assert host.stdin is not None
    assert host.stdout is not None
    host.stdin.write(b"\n")
    host.stdin.flush()
    assert host.stdout.readline() == b"bye\n"
    until_now(lambda: gone(reaper))
    assert not gone(child)
    assert not gone(grandchild)


def test_a_reaper_never_outlives_a_host_that_left_without_a_word(spawn: Spawn, family: str) -> None:
    host, reaper, child, grandchild = start(spawn, f"{KEY}/leave", family)
    assert host.stdin is not None
    host.stdin.write(b"\n\n")
    host.stdin.flush()
    host.wait(30)
    until_now(lambda: gone(reaper))
    for pid in (child, grandchild):  # a farewell means: nothing here has to be killed
        os.kill(pid, signal.SIGKILL)
