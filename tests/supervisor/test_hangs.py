"""Engines and hosts that hang, in a running tree: seen, named, ended, restarted; and no request is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.process.identity import alive
from rayvisor._core.protocol.wire import ProcessId
from tests.waiting import until

PROMPT = "Once upon a time"
GREEDY = {"max_tokens": 60, "temperature": 0.0}


def tree(arguments: dict[str, Any] | None = None, *, local: bool = False, **options: Any) -> rv.Supervisor:
    """One pool of simulated engines, watched with little patience."""
    given = {
        "engine": "sim", "engine_args": {"tokens_per_second": 200.0, **(arguments or {})}, "num_cpus": 0,
        "stall_after": 2.0, "probe_interval": 0.25, "failure_threshold": (3, 5), **options,
    }  # fmt: skip
    spec = rv.SupervisorSpec(children=[rv.engine_pool("llm", **given)])
    return rv.Supervisor(spec, local=local, seed=7)


def process(sup: rv.Supervisor, name: str, child: str = "llm/1") -> ProcessId:
    return next(p for role, p in sup.processes(child) if name in (role, *p.name.split("::")))


async def read(sup: rv.Supervisor, texts: list[str], params: dict[str, Any] | None = None) -> None:
    async with sup["llm"].generate(PROMPT, params or GREEDY) as generation:
        texts.append((await generation.result()).text)


async def expected() -> str:
    texts: list[str] = []
    async with tree(local=True) as sup:
        await read(sup, texts)
    return texts[0]


def story(records: Sequence[r.Record]) -> list[str]:
    """Return the states and faults of the first engine."""
    return [
        x.after if isinstance(x, r.StateChanged) else f"{x.fault.fault_class}: {x.fault.root.type}"
        for x in records
        if (isinstance(x, r.StateChanged) and x.child == "llm/1")
        or (isinstance(x, r.FaultSeen) and x.fault.child == "llm/1")
    ]


async def test_a_stopped_engine_is_suspect_then_ended_and_its_requests_go_on_in_the_next() -> None:
    text = await expected()
    texts: list[str] = []
    async with tree(local=True) as sup:
        watch = sup.watch()
        stopped = process(sup, "EngineCore")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read, sup, texts)
            await until(lambda: sup["llm"].stats().tokens >= 30)
            os.kill(stopped.pid, signal.SIGSTOP)
        assert not alive(stopped)
    seen = [x async for x in watch]
    assert texts == [text] * 3
    assert story(seen)[:5] == [
        "ALIVE.SUSPECT",
        "FATAL: ProcessStopped",
        "RESTARTING.STOPPING",
        "RESTARTING.STARTING",
        "ALIVE.SERVING",
    ]
    (fault,) = [x.fault for x in seen if isinstance(x, r.FaultSeen)]
    assert fault.root.message == f"EngineCore (pid {stopped.pid}) is stopped (SIGSTOP)"
    assert fault.causes[0].type == "EngineStalled"
    suspected = next(x for x in seen if isinstance(x, r.StateChanged) and x.event == "suspect")
    assert "is stopped (SIGSTOP)" in suspected.why


async def test_a_suspect_engine_gets_no_new_work_and_serves_again_when_it_brings_a_token() -> None:
    held: list[str] = []
    others: list[str] = []
    async with tree(local=True, size=2, stall_after=60.0, probe_interval=0.1) as sup:
        watch = sup.watch()
        states: list[str] = []

        async def follow() -> None:
            async for record in watch:
                states.extend(story([record]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            async with anyio.create_task_group() as reading:
                for _ in range(2):  # one for each engine
                    reading.start_soon(read, sup, held, {**GREEDY, "max_tokens": 400, "ignore_eos": True})
                await until(lambda: sup["llm"].stats().tokens >= 30)
                os.kill(process(sup, "EngineCore").pid, signal.SIGSTOP)
                await until(lambda: states[-1:] == ["ALIVE.SUSPECT"])
                async with anyio.create_task_group() as more:
                    for _ in range(4):
                        more.start_soon(read, sup, others)
                assert len(others) == 4  # though one engine of two does nothing
                assert len(held) < 2
                os.kill(process(sup, "EngineCore").pid, signal.SIGCONT)
            assert len(held) == 2
            await until(lambda: states[-1:] == ["ALIVE.SERVING"])
            tasks.cancel_scope.cancel()
        assert sup.engine_info("llm/1") is not None


@pytest.mark.ray
@pytest.mark.usefixtures("cluster_address")
async def test_a_stopped_host_is_found_by_its_silence_and_named() -> None:
    text = await expected()
    texts: list[str] = []
    async with tree(stall_after=4.0) as sup:
        watch = sup.watch()
        host, engine = process(sup, "host"), process(sup, "Worker")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read, sup, texts)
            await until(lambda: sup["llm"].stats().tokens >= 30)
            os.kill(host.pid, signal.SIGSTOP)
        assert not alive(host)
        assert not alive(engine)
    seen = [x async for x in watch]
    assert texts == [text] * 3
    assert "ALIVE.SUSPECT" in story(seen)
    (fault,) = [x.fault for x in seen if isinstance(x, r.FaultSeen)]
    assert str(fault.root) == f"ProcessStopped: the host (pid {host.pid}) is stopped (SIGSTOP)"
    assert fault.causes[0].type == "HostStalled"
    assert fault.fault_class is rv.FaultClass.FATAL


@pytest.mark.ray
@pytest.mark.usefixtures("cluster_address")
@pytest.mark.parametrize("fault", ["block_on_prompt", "hold_gil_on_prompt"])
async def test_a_host_whose_loop_is_held_up_is_ended_with_the_place_where_it_stands(fault: str) -> None:
    text = await expected()
    texts: list[str] = []
    async with tree({fault: "hang"}, stall_after=4.0) as sup:
        watch = sup.watch()
        host = process(sup, "host")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read, sup, texts)
            await until(lambda: sup["llm"].stats().tokens >= 30)
            with pytest.raises(rv.RequestError, match="HostStalled"):
                await sup["llm"].generate("hang", GREEDY, max_attempts=1).result()
        assert not alive(host)
    seen = [x async for x in watch]
    assert texts == [text] * 3
    (found,) = [x.fault for x in seen if isinstance(x, r.FaultSeen)]
    assert found.root.type == "HostStalled"
    assert f"host (pid {host.pid}) sleeps" in found.root.message
    assert "its loop is at _hang_on_prompt (" in found.root.message
    assert "_pump (" in found.traceback


@pytest.mark.ray
@pytest.mark.usefixtures("cluster_address")
async def test_a_host_that_is_stopped_while_its_engine_starts_is_followed_by_another() -> None:
    sup = tree({"start_delay": 2.0}, start_timeout=30.0, stall_after=10.0)
    watch = sup.watch()
    stopped: list[ProcessId] = []
    faults: list[rv.Fault] = []

    async def follow() -> None:
        async for record in watch:
            if isinstance(record, r.FaultSeen):
                faults.append(record.fault)
            if isinstance(record, r.StartProgressed) and record.phase == "loading" and not stopped:
                stopped.append(process(sup, "host"))
                os.kill(stopped[0].pid, signal.SIGSTOP)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        async with sup:
            assert not alive(stopped[0])
            assert process(sup, "host") != stopped[0]
        tasks.cancel_scope.cancel()
    (fault,) = faults
    assert str(fault.root) == f"ProcessStopped: the host (pid {stopped[0].pid}) is stopped (SIGSTOP)"
    assert fault.phase == "starting"
