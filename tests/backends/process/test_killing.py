"""A tree is stopped before it is killed, where nothing else would find what forks meanwhile."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import functools, os, subprocess, sys
import anyio
from rayvisor._backends.process.crash import end_children
from rayvisor._backends.process import killing
from rayvisor._backends.process.reaper import read_stat
from rayvisor._backends.process.identity import identify
from rayvisor._backends.process.tree import tree

forking = '''
import os, time
print("up", flush=True)
for _ in range(3):
    os.fork()
    time.sleep(0.02)
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-c", forking], stdout=subprocess.PIPE)
child.stdout.readline()
states, kill = [], killing.kill

def seen(process):
    if not states:
        states.extend(read_stat(each.pid).state for each in tree(identify(os.getpid())))
    return kill(process)

killing.kill = seen
if sys.argv[1] == "children":
    killed = end_children(20.0)
else:
    end = functools.partial(killing.end_processes, [identify(child.pid)], key=None, timeout=20.0)
    killed = anyio.run(end).killed
print(len(killed), "".join(sorted(set(states))), len(tree(identify(os.getpid()))))
"""


@pytest.mark.parametrize("whose", ["children", "processes"])
def test_all_stand_still_before_any_is_killed_so_that_none_forks_meanwhile(whose: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, whose], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    killed, states, left = done.stdout.split()
    assert int(killed) >= 1
    assert (states, left) == ("T", "0")
