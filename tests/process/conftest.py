from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
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
def until() -> Callable[..., None]:
    """Wait for a condition."""

    def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def stubborn() -> str:
    return STUBBORN


@pytest.fixture
def family() -> str:
    return FAMILY


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait for a condition while the loop goes on."""

    async def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - the conditions are other processes' doings
                await anyio.sleep(0.01)

    return wait
