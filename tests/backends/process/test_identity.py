"""A process is the same if and only if pid, start ticks and boot id are equal; no clock is read."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from rayvisor._backends.process import identity, reaper
from rayvisor._backends.process.engine_tree import ProcessTree, process_id
from rayvisor._backends.process.identity import alive, boot_id, find, identify, own_identity, same
from rayvisor._backends.process.killing import end_processes
from rayvisor._backends.process.node_agent import NodeAgent
from rayvisor._backends.process.observation import Sampler
from rayvisor._backends.process.pidfd import PidfdHandle
from rayvisor._backends.process.tree import kill
from rayvisor._core.protocol.wire import ProcessId
from tests.waiting import until_now

Spawn = Callable[..., subprocess.Popen[bytes]]


@contextmanager
def broken_clocks() -> Iterator[None]:
    """Break everything that derives a start time from the wall clock."""

    def refuse(*_: Any) -> float:
        raise AssertionError("a clock was read to identify a process")

    step = iter(range(10**9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "boot_time", refuse)
        patch.setattr(psutil.Process, "create_time", refuse)
        # Every call steps the wall clock by an hour.
        patch.setattr(time, "time", lambda: 3600.0 * next(step))
        yield


def known(pid: int) -> ProcessId:
    process = identify(pid)
    assert process is not None
    return process


async def test_steps_of_the_wall_clock_change_no_identity_and_kill_nothing(
    spawn: Spawn, stubborn: str
) -> None:
    child = spawn(stubborn)
    with broken_clocks():
        process = process_id(child.pid)
        assert same(process, known(child.pid))
        assert alive(process)
        handle = PidfdHandle(process)
        assert handle.alive()
        handle.close()
        tree = ProcessTree("no-such-tag")
        tree.descend_from(child.pid, "test::EngineCore")
        await tree.scan()
        assert [each.pid for each in tree.alive()] == [child.pid]
        tree.close()
        assert [each.state != "" for each in Sampler().sample([process], 0.0)] == [True]
        agent = NodeAgent()
        assert await agent.adopt("tests/clock", process)
        assert [each.pid for each in await agent.snapshot("tests/clock")] == [child.pid]
        await agent.close()
        assert child.poll() is None
        # What is reported as gone is gone: the proof never holds for a living process.
        assert (await end_processes([process], key=None, timeout=30.0)).verified
        assert child.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize(
    "other",
    [
        lambda process: process._replace(start_ticks=process.start_ticks - 1),
        lambda process: process._replace(start_ticks=process.start_ticks + 1),
        lambda process: process._replace(boot_id="00000000-0000-0000-0000-000000000000"),
    ],
    ids=["one tick earlier", "one tick later", "another boot"],
)
async def test_another_process_with_the_same_pid_is_neither_alive_nor_found_nor_touched(
    spawn: Spawn, stubborn: str, other: Callable[[ProcessId], ProcessId]
) -> None:
    child = spawn(stubborn)
    process = known(child.pid)
    stranger = other(process)
    assert not same(process, stranger)
    assert not alive(stranger)
    assert find(stranger) is None
    assert not kill(stranger)
    handle = PidfdHandle(stranger)
    handle.kill()
    assert not handle.alive()
    assert [each.state for each in Sampler().sample([stranger], 0.0)] == [""]
    report = await end_processes([stranger], key=None, timeout=30.0)
    assert report.verified
    assert report.killed == ()
    assert child.poll() is None
    assert alive(process)


def test_a_name_is_no_part_of_the_identity() -> None:
    me = own_identity()
    assert same(me, me._replace(name="another title"))
    assert alive(me._replace(name="another title"))


def test_a_zombie_is_gone_and_its_record_can_still_be_read(spawn: Spawn, stubborn: str) -> None:
    child = spawn(stubborn)
    process = known(child.pid)
    child.kill()
    until_now(lambda: not alive(process))
    stat = find(process)
    assert stat is not None
    assert stat.gone
    assert identify(child.pid) is None
    zombie = identify(child.pid, zombie=True)
    assert zombie is not None
    assert same(zombie, process)


@pytest.mark.parametrize("name", ["plain", "two words", "a) S 1 (b", ") Z 1 1", "((", "))"])
def test_a_name_with_spaces_and_parentheses_does_not_shift_the_fields(name: str) -> None:
    fields = ["S", "7", *(str(number) for number in range(2, 52))]
    stat = reaper.parse_stat(42, f"42 ({name}) {' '.join(fields)}\n".encode())
    assert stat is not None
    assert (stat.pid, stat.ppid, stat.state, stat.name) == (42, 7, "S", name)
    assert (stat.start_ticks, stat.flags, stat.cpu_ticks, stat.exit_status) == (19, 6, 11 + 12, 49)


@pytest.mark.parametrize("text", [b"", b"42 (x", b"42 (x) S 1 2", b"42 (x) S " + b"1 " * 18])
def test_a_record_that_is_not_complete_is_no_record(text: bytes) -> None:
    assert reaper.parse_stat(42, text) is None


def test_a_process_that_names_itself_in_an_odd_way_is_identified() -> None:
    program = "open('/proc/self/comm', 'w').write(') R 1 (x'); print('up', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        process = known(child.pid)
        assert process.name == ") R 1 (x"
        stat = find(process)
        assert stat is not None
        assert stat.ppid == os.getpid()
        child.kill()


def test_an_identity_survives_pickle_and_json() -> None:
    me = own_identity()
    sent = pickle.loads(pickle.dumps(me))
    assert (type(sent), sent) == (ProcessId, me)
    assert alive(sent)
    assert ProcessId(*json.loads(json.dumps(me))) == me


def test_where_the_kernel_has_no_boot_id_processes_are_still_identified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "_BOOT_ID", "/proc/no/such/file")
    boot_id.cache_clear()
    try:
        me = own_identity()
        assert me.boot_id == ""
        assert alive(me)
    finally:
        boot_id.cache_clear()


def test_without_proc_the_error_says_that_the_system_is_not_supported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reaper, "read_stat", lambda _: None)
    with pytest.raises(RuntimeError, match="on Linux only"):
        own_identity()
