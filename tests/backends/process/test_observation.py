"""A process observed from outside: its state and its load."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rayvisor._backends.process.engine_tree import process_id
from rayvisor._backends.process.observation import Sampler, describe
from rayvisor._core.protocol.wire import ProcessId, ProcessObservation

BURN = "import os; os.sched_setaffinity(0, {0}); exec('while True: pass')"
# The first thread sleeps; another one computes, when it is let.
STARVED = """
import os, threading
os.sched_setaffinity(0, {0})
os.nice(15)
def work():
    while True: pass
threading.Thread(target=work, daemon=True).start()
threading.Event().wait()
"""
SLEEPS = "import time; time.sleep(600)"


@pytest.fixture
def crowded() -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


def load_of(program: str, *, seconds: float, enough: float) -> float:
    """The highest load that is seen within some seconds; it is not looked for any longer than needed."""
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        sampler, seen, held = Sampler(), 0.0, process_id(child.pid)
        time.sleep(0.5)  # the interpreter's own start is no part of it
        end = time.monotonic() + seconds
        while time.monotonic() < end and seen < enough:
            seen = max([seen, *(sight.load for sight in sampler.sample([held], time.monotonic()))])
            time.sleep(0.25)
        return seen
    finally:
        child.kill()
        child.wait()


@pytest.mark.usefixtures("crowded")
def test_a_thread_that_computes_and_gets_no_core_counts_as_computing() -> None:
    assert load_of(STARVED, seconds=20, enough=0.5) >= 0.5


def test_a_process_that_sleeps_does_not_compute() -> None:
    assert load_of(SLEEPS, seconds=1.5, enough=0.5) < 0.5


@pytest.mark.parametrize(
    ("state", "load", "words"),
    [
        ("S", 0.0, "sleeps"),
        ("R", 0.01, "sleeps"),  # as some kernels show any process
        ("R", 0.06, "computes"),
        ("S", 0.7, "takes 70% of a core"),
        ("R", 1.9, "takes 190% of a core"),
        ("T", 1.9, "is stopped"),
        ("D", 0.0, "waits for a device"),
        ("", 0.0, "has ended"),
    ],
)
def test_what_a_process_does_is_told_by_its_load_first(state: str, load: float, words: str) -> None:
    host = ProcessId(7, 1, "", "host")
    assert describe([ProcessObservation(host, state, load)], busy=0.2) == f"host (pid 7) {words}"
