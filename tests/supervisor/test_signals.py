"""Signals, at real programs: the tree ends in order, within its times, and nothing is left of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import queue
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
"""Seconds: a loaded machine may take half a minute to start a Ray."""


OVER = "(it says no more)"


class Driver:
    """The program of `driver.py`, its lines, and every process that it has ever had."""

    def __init__(self, *arguments: str, terminal: bool = False) -> None:
        master, slave = pty.openpty() if terminal else (-1, -1)
        self.terminal = master
        command = [sys.executable, "-W", "default", "-m", "tests.supervisor.driver", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=slave if terminal else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # The terminal becomes the controlling one of the program's new session.
            preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509 - one system call
        )
        if terminal:
            os.close(slave)
        self.lines: list[str] = []
        self.errors = ""
        self._queue: queue.Queue[str] = queue.Queue()
        self._known: set[psutil.Process] = set()
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.strip())
        self._queue.put(OVER)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def until(self, *lines: str) -> None:
        """Wait until the program has said one of these."""
        timeout = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._queue.get(timeout=max(0.01, timeout - time.monotonic()))
            except queue.Empty:
                line = OVER
            if line == OVER:
                pytest.fail(f"{lines} were not said, only {self.lines}; {self.errors}")
            self.lines.append(line)
            if line.startswith("processes"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._known.update(psutil.Process(int(pid)) for pid in line.split()[1:])
            if line in lines:
                self.note()
                return

    def note(self) -> None:
        """Remember the processes that there are now."""
        self._known.update(psutil.Process(self.process.pid).children(recursive=True))

    def send(self, number: int) -> float:
        self.note()
        os.kill(self.process.pid, number)
        return time.monotonic()

    def ctrl_c(self) -> float:
        self.note()
        os.write(self.terminal, b"\x03")
        return time.monotonic()

    def end(self) -> int:
        """Wait for its end; what it said comes to ``lines``, and none of its processes may be left."""
        status = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(60)
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        for complaint in ("never retrieved", "Task was destroyed", "never awaited", "ResourceWarning"):
            assert complaint not in self.errors
        _, left = psutil.wait_procs(self._known | self._session(), timeout=60)
        assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
        return status

    def _session(self) -> set[psutil.Process]:
        """Every process of the program's session: also what was started after the last look."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.process.pid:
                    found.add(process)
        return found

    def ends(self) -> list[str]:
        """The order in which the children ended."""
        names = {"- first": "first", "- last": "last", "llm 1 DEAD.STOPPED": "llm"}
        return [names[line] for line in self.lines if line in names]

    def close(self) -> None:
        for process in {*self._known, *self._session(), *_family(self.process.pid)}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(60)
        for thread in self._threads:
            thread.join(60)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self.terminal >= 0:
            os.close(self.terminal)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def drive() -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(*arguments: str, terminal: bool = False) -> Driver:
        drivers.append(Driver(*arguments, terminal=terminal))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()


ORDER = ["last", "llm", "first"]


@pytest.mark.parametrize("way", ["async", "thread"])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_the_tree_in_reverse_order(
    cluster_address: str, drive: Callable[..., Driver], way: str, number: int, status: int
) -> None:
    driver = drive(way, cluster_address)
    driver.until("up")
    sent = driver.send(number)
    assert driver.end() == status, driver.errors
    assert time.monotonic() - sent < 45
    if way == "async":  # the records of the other are not read
        assert driver.ends() == ORDER
    else:
        assert driver.ends() == ["last", "first"]
    assert "not reached" not in driver.lines


def test_ctrl_c_passes_through_a_task_group_as_it_is(drive: Callable[..., Driver]) -> None:
    driver = drive("group", "local")
    driver.until("up")
    driver.send(signal.SIGINT)
    assert driver.end() == -signal.SIGINT, driver.errors
    assert driver.ends() == ORDER
    said = [line for line in driver.lines if line.startswith("- ")]
    assert said[-1] == "- beside"  # the group's other task is cancelled after the tree has ended
    assert "not reached" not in driver.lines


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_still_all_ends_in_order(
    drive: Callable[..., Driver],
) -> None:
    driver = drive("async", "own", terminal=True)
    driver.until("up")
    driver.ctrl_c()
    assert driver.end() == -signal.SIGINT, driver.errors
    assert driver.ends() == ORDER
    assert "unverified" not in driver.errors


def test_a_child_gets_its_shutdown_time_and_a_second_signal_takes_it(drive: Callable[..., Driver]) -> None:
    driver = drive("async", "local", "shutdown=infinity", "ending=600")
    driver.until("up")
    driver.send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        driver.process.wait(1.0)
    sent = driver.send(signal.SIGTERM)
    assert driver.end() == 143, driver.errors
    assert time.monotonic() - sent < 45
    assert "llm 1 DEAD.STOPPED" in driver.lines
    assert "- last" not in driver.lines  # its shield did not hold


def test_a_second_signal_ends_engines_at_once(cluster_address: str, drive: Callable[..., Driver]) -> None:
    driver = drive("async", cluster_address, "shutdown=60", "ending=2")
    driver.until("up")
    driver.send(signal.SIGINT)
    time.sleep(0.5)
    sent = driver.send(signal.SIGINT)
    assert driver.end() == -signal.SIGINT, driver.errors
    assert time.monotonic() - sent < 45


def test_a_signal_during_the_start_ends_what_is_there(
    cluster_address: str, drive: Callable[..., Driver]
) -> None:
    driver = drive("async", cluster_address, "start_delay=600")
    driver.until("phase loading")
    driver.send(signal.SIGINT)
    assert driver.end() == -signal.SIGINT, driver.errors
    assert "up" not in driver.lines
    assert driver.ends() == ["llm", "first"]


def test_a_signal_while_ray_comes_up_ends_the_program(drive: Callable[..., Driver]) -> None:
    driver = drive("async", "own")
    driver.until(f"pid {driver.process.pid} 1")
    timeout = time.monotonic() + PATIENCE
    while not _family(driver.process.pid):  # Ray's first process is there
        assert time.monotonic() < timeout
        time.sleep(0.01)
    driver.send(signal.SIGTERM)
    assert driver.end() == 143, driver.errors
    assert "up" not in driver.lines


def test_a_signal_during_a_restart_ends_the_new_engine_too(
    cluster_address: str, drive: Callable[..., Driver]
) -> None:
    driver = drive("async", cluster_address, "start_delay=2", "kill=EngineCore")
    driver.until("up")
    driver.until("engine 2 RESTARTING.STARTING")
    driver.until("phase loading")
    driver.send(signal.SIGTERM)
    assert driver.end() == 143, driver.errors
    assert driver.ends() == ORDER
