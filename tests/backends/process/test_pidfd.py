"""A held process: how early its death is known, and that nothing else is taken for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from rayvisor._backends.process.engine_tree import process_id
from rayvisor._backends.process.pidfd import PidfdHandle
from tests.waiting import until

# Large, with threads: as an engine is. A byte on its input ends two of its threads; the rest stay.
ENGINE = """
import sys, threading, time
memory = bytearray(300_000_000)
for place in range(0, len(memory), 4096):
    memory[place] = 1
over = threading.Event()
for _ in range(2):
    threading.Thread(target=over.wait, daemon=True).start()
for _ in range(10):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("up", flush=True)
sys.stdin.read(1)
over.set()
print("fewer", flush=True)
time.sleep(600)
"""


@contextmanager
def running() -> Iterator[tuple[subprocess.Popen[bytes], PidfdHandle]]:
    process = subprocess.Popen([sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    held = PidfdHandle(process_id(process.pid))
    try:
        yield process, held
    finally:
        held.close()
        process.kill()
        process.wait()
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.close()


def exits_with_3() -> subprocess.Popen[bytes]:
    """Once its input is closed."""
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"], stdin=-1)


def threads_can_be_watched() -> bool:
    try:
        fd = os.pidfd_open(threading.get_native_id(), os.O_EXCL)
    except OSError:
        return False
    os.close(fd)
    return True


async def test_a_killed_process_is_known_to_be_dead_while_it_is_still_being_taken_down() -> None:
    early = []
    for _ in range(5):  # on a busy machine the news may be read late
        with running() as (process, held):
            told = asyncio.Event()
            assert held.watch(told.set)
            process.kill()
            await asyncio.wait_for(told.wait(), 60)
            early.append(held.alive())
            assert held.exiting()
            assert held.how_it_ended() == (None, signal.SIGKILL)
            await until(lambda: not held.alive())
            assert held.how_it_ended() == (None, signal.SIGKILL)
    assert any(early) == threads_can_be_watched()


async def test_threads_that_end_by_themselves_are_no_death() -> None:
    with running() as (process, held):
        told = asyncio.Event()
        held.watch(told.set)
        before = psutil.Process(process.pid).num_threads()
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        await until(lambda: psutil.Process(process.pid).num_threads() == before - 2)
        for _ in range(3):  # what was ready to be read has been told by then
            await asyncio.sleep(0)
        assert not told.is_set()
        assert not held.exiting()
        held.watch(told.set)  # others are watched in their place
        process.kill()
        await asyncio.wait_for(told.wait(), 60)


async def test_a_stopped_process_is_not_dead() -> None:
    with running() as (process, held):
        process.send_signal(signal.SIGSTOP)
        await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        assert held.alive()
        assert not held.exiting()
        assert held.how_it_ended() == (None, None)
        process.send_signal(signal.SIGCONT)
        await until(lambda: psutil.Process(process.pid).status() != psutil.STATUS_STOPPED)
        assert not held.exiting()


async def test_a_process_that_has_ended_is_gone_before_its_parent_asks_for_it() -> None:
    process = exits_with_3()
    held = PidfdHandle(process_id(process.pid))
    assert held.alive()
    told = asyncio.Event()
    held.watch(told.set)
    assert process.stdin is not None
    process.stdin.close()
    await asyncio.wait_for(told.wait(), 60)
    await until(lambda: not held.alive())
    assert held.how_it_ended() == (3, None)
    held.close()
    process.wait()


async def test_a_process_with_the_pid_of_one_that_ended_is_neither_held_nor_killed() -> None:
    with running() as (process, _):
        real = process_id(process.pid)
        other = PidfdHandle(real._replace(start_ticks=real.start_ticks - 1))
        assert not other.alive()
        other.kill()
        assert not other.watch(lambda: None)
        assert process.poll() is None
