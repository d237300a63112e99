from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
"""A program that SIGTERM does not end."""

FAMILY = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
"""A program with a child; neither is ended by SIGTERM. It prints the child's pid."""


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Python program; whatever is left of it and of its children is killed afterwards."""
    started: list[psutil.Process] = []
    children: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            **options,
        )
        children.append(child)
        started.append(psutil.Process(child.pid))
        return child

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for below in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    below.kill()
            process.kill()
    for child in children:
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def stubborn() -> str:
    return STUBBORN


@pytest.fixture
def family() -> str:
    return FAMILY
