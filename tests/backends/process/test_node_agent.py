from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest

from rayvisor._backends.process import node_agent
from rayvisor._backends.process.identity import alive, boot_id, identify
from rayvisor._backends.process.node_agent import NodeAgent
from rayvisor._backends.process.tree import MARKER
from rayvisor._core.protocol.wire import ProcessId
from rayvisor.timeouts import ProcessTimeouts
from tests.waiting import until

Spawn = Callable[..., subprocess.Popen[bytes]]
KEY = f"tests/{os.getpid()}/agent"
"""Unique per run: processes with a key are found on the whole machine, where other tests may run."""


def known(pid: int) -> ProcessId:
    process = identify(pid)
    assert process is not None
    return process


@pytest.fixture
async def agent() -> AsyncIterator[NodeAgent]:
    agent = NodeAgent(timeouts=ProcessTimeouts(agent_scan=0.05))
    yield agent
    await agent.close()


def host_with_child(spawn: Spawn, family: str, key: str) -> tuple[ProcessId, ProcessId]:
    child = spawn(family, env={**os.environ, MARKER: key})
    assert child.stdout is not None
    return known(child.pid), known(int(child.stdout.readline()))


async def test_when_a_host_dies_what_is_left_of_its_tree_is_killed_at_once(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/dies")
    assert await agent.adopt(f"{KEY}/dies", host)
    os.kill(child.pid, signal.SIGSTOP)
    os.kill(host.pid, signal.SIGKILL)
    await until(lambda: not alive(child))
    report = await agent.end(f"{KEY}/dies", 30.0)
    assert report.verified
    assert child.pid in {process.pid for process in report.killed}


async def test_end_kills_a_living_host_with_its_tree_and_returns_the_proof(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/end")
    await agent.adopt(f"{KEY}/end", host)
    report = await agent.end(f"{KEY}/end", 30.0)
    assert report.verified
    assert {process.pid for process in report.killed} == {host.pid, child.pid}
    assert not alive(host)
    assert not alive(child)


async def test_an_agent_that_knows_nothing_of_a_host_ends_it_by_its_key(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/unknown")
    report = await agent.end(f"{KEY}/unknown", 30.0)
    assert report.verified
    assert {process.pid for process in report.killed} == {host.pid, child.pid}


async def test_a_host_that_is_already_gone_is_adopted_as_gone(agent: NodeAgent) -> None:
    assert not await agent.adopt(f"{KEY}/gone", ProcessId(2**22 - 1, 0, boot_id(), "host"))
    assert (await agent.end(f"{KEY}/gone", 30.0)).verified


async def test_a_snapshot_shows_the_whole_tree_and_recorded_processes_are_kept(
    agent: NodeAgent, spawn: Spawn, family: str, stubborn: str
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/snapshot")
    stranger = known(spawn(stubborn).pid)
    await agent.adopt(f"{KEY}/snapshot", host)
    await agent.record(f"{KEY}/snapshot", [stranger])
    pids = {process.pid for process in await agent.snapshot(f"{KEY}/snapshot")}
    assert pids == {host.pid, child.pid, stranger.pid}
    report = await agent.end(f"{KEY}/snapshot", 30.0)
    assert not alive(stranger)
    assert report.verified


async def test_how_a_host_ended_is_told_to_all_who_wait_for_it(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    host, _ = host_with_child(spawn, family, f"{KEY}/told")
    await agent.adopt(f"{KEY}/told", host)
    waiting = [asyncio.create_task(agent.host_ended(f"{KEY}/told")) for _ in range(2)]
    gone = asyncio.create_task(agent.host_ended(f"{KEY}/told"))
    await asyncio.sleep(0)
    gone.cancel()  # one who goes away does not take the others with it
    os.kill(host.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert await asyncio.gather(*waiting) == [(None, signal.SIGKILL)] * 2
        assert await agent.host_ended(f"{KEY}/told") == (None, signal.SIGKILL)


async def test_of_a_host_that_is_not_accounted_for_nothing_is_told(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    assert await agent.host_ended(f"{KEY}/nobody") is None
    host, _ = host_with_child(spawn, family, f"{KEY}/dropped")
    await agent.adopt(f"{KEY}/dropped", host)
    waiting = asyncio.create_task(agent.host_ended(f"{KEY}/dropped"))
    await asyncio.sleep(0)
    await agent.forget(f"{KEY}/dropped")
    assert await asyncio.wait_for(waiting, 30) is None


async def test_processes_that_are_recorded_while_the_tree_is_read_are_kept_and_the_host_stays_watched(
    agent: NodeAgent, spawn: Spawn, family: str, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/meanwhile")
    waiting_strangers = strangers = [known(spawn(stubborn).pid) for _ in range(3)]
    loop, loop_thread = asyncio.get_running_loop(), threading.get_ident()
    looks = 0

    def look(process: ProcessId) -> bool:
        """Have the event loop record a process while this thread goes through the known ones."""
        nonlocal looks, waiting_strangers
        if threading.get_ident() != loop_thread:
            looks += 1
            for stranger in waiting_strangers[:1]:
                record = agent.record(f"{KEY}/meanwhile", [stranger])
                asyncio.run_coroutine_threadsafe(record, loop).result(30)
            waiting_strangers = waiting_strangers[1:]
        return alive(process)

    failures: list[str] = []
    logger = SimpleNamespace(exception=lambda event, **_: failures.append(event), info=lambda *_, **__: None)
    monkeypatch.setattr(node_agent, "log", logger)
    monkeypatch.setattr(node_agent, "alive", look)
    await agent.adopt(f"{KEY}/meanwhile", host)
    await until(lambda: not waiting_strangers and looks > 20)
    pids = {process.pid for process in await agent.snapshot(f"{KEY}/meanwhile")}
    assert pids == {host.pid, child.pid, *(stranger.pid for stranger in strangers)}
    ended = asyncio.create_task(agent.host_ended(f"{KEY}/meanwhile"))
    os.kill(host.pid, signal.SIGKILL)
    assert await asyncio.wait_for(ended, 30) == (None, signal.SIGKILL)
    await until(lambda: not any(alive(process) for process in (child, *strangers)))
    assert failures == []


async def test_a_tree_that_cannot_be_read_does_not_end_the_watch_of_the_host(
    agent: NodeAgent, spawn: Spawn, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/unreadable")
    failures = 0

    def fail(*_: ProcessId) -> tuple[ProcessId, ...]:
        nonlocal failures
        failures += 1
        raise OSError("too many open files")

    monkeypatch.setattr(node_agent, "tree", fail)
    await agent.adopt(f"{KEY}/unreadable", host)
    await until(lambda: failures >= 2)
    os.kill(host.pid, signal.SIGKILL)
    await until(lambda: not alive(child))


async def test_two_calls_that_end_one_host_at_the_same_time_both_get_the_proof(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/twice")
    await agent.adopt(f"{KEY}/twice", host)
    reports = await asyncio.gather(*(agent.end(f"{KEY}/twice", 30.0) for _ in range(4)))
    assert all(report.verified for report in reports)
    assert {process.pid for report in reports for process in report.killed} == {host.pid, child.pid}


async def test_user_code_that_holds_every_shared_thread_does_not_hold_up_a_kill(
    agent: NodeAgent, spawn: Spawn, family: str
) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/threads")
    gate = threading.Event()
    shared = anyio.to_thread.current_default_thread_limiter()
    blocked = [
        *(asyncio.create_task(asyncio.to_thread(gate.wait)) for _ in range(40)),
        *(asyncio.create_task(anyio.to_thread.run_sync(gate.wait)) for _ in range(int(shared.total_tokens))),
    ]
    try:
        await until(lambda: shared.available_tokens == 0)
        report = await agent.end(f"{KEY}/threads", 30.0)
        assert report.verified
        assert {process.pid for process in report.killed} == {host.pid, child.pid}
    finally:
        gate.set()
        await asyncio.gather(*blocked)


async def test_a_forgotten_host_is_left_alone(agent: NodeAgent, spawn: Spawn, family: str) -> None:
    host, child = host_with_child(spawn, family, f"{KEY}/forgotten")
    await agent.adopt(f"{KEY}/forgotten", host)
    await agent.forget(f"{KEY}/forgotten")
    assert await agent.snapshot(f"{KEY}/forgotten") == ()
    os.kill(host.pid, signal.SIGKILL)
    await until(lambda: not alive(host))
    assert alive(child)
    os.kill(child.pid, signal.SIGKILL)
