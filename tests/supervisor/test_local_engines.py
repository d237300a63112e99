"""Trees of simulated engines without Ray: the same runtime, hosts in this process."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.process.identity import alive
from rayvisor._core.protocol.wire import ProcessId
from tests.waiting import until

PROMPT = "Once upon a time"
GREEDY = {"max_tokens": 60, "temperature": 0.0}


def pool(**options: Any) -> rv.SupervisorSpec:
    arguments = {"tokens_per_second": 200.0, **options.pop("engine_args", {})}
    options = {"engine": "sim", "engine_args": arguments, "start_timeout": 120.0, **options}
    return rv.SupervisorSpec(children=[rv.engine_pool("llm", **options)])


def local(**options: Any) -> rv.Supervisor:
    return rv.Supervisor(pool(**options), local=True, seed=7)


def core(sup: rv.Supervisor, child: str = "llm/1") -> ProcessId:
    return next(p for role, p in sup.processes(child) if role == "engine" and "EngineCore" in p.name)


def process_clock() -> float:
    """Return the present time in clock ticks since boot, as processes' starts are given."""
    return float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")


async def reference(supervisor: rv.Supervisor) -> str:
    async with supervisor as sup:
        completion = await sup["llm"].generate(PROMPT, GREEDY).result()
        return str(completion.text)


async def test_a_killed_engine_is_followed_by_another_and_no_token_is_lost() -> None:
    expected = await reference(local())
    async with local() as sup:
        first = core(sup)
        texts: list[str] = []

        async def read() -> None:
            parts = [chunk.text async for chunk in sup["llm"].generate(PROMPT, GREEDY)]
            texts.append("".join(parts))

        watch = sup.watch()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
            await until(lambda: sup["llm"].stats().tokens >= 30)
            killed_at = process_clock()
            os.kill(first.pid, signal.SIGKILL)
        assert texts == [expected] * 3
        second = core(sup)
        assert second.pid != first.pid
        assert second.start_ticks >= killed_at - 2  # both are rounded
        assert not alive(first)
        assert sup["llm"].stats().tokens >= 180
    seen = [x async for x in watch]
    fault = next(x.fault for x in seen if isinstance(x, r.FaultSeen))
    assert fault.root.type == "ProcessKilled"
    assert fault.signal == signal.SIGKILL
    assert not alive(second)


async def test_the_next_engine_starts_only_when_the_old_ones_processes_are_gone() -> None:
    async with local(engine_args={"start_delay": 0.2}) as sup:
        old = [p for role, p in sup.processes("llm/1") if role == "engine"]
        assert len(old) == 2
        for process in old:  # the worker cannot end by itself
            if "Worker" in process.name:
                os.kill(process.pid, signal.SIGSTOP)
        gone_at: list[float] = []
        watch = sup.watch()
        os.kill(core(sup).pid, signal.SIGKILL)
        async for record in watch:
            if isinstance(record, r.StateChanged) and record.event == "start":
                assert not any(alive(process) for process in old)
                gone_at.append(process_clock())
            if isinstance(record, r.StateChanged) and record.event == "started":
                break
        new = [p for role, p in sup.processes("llm/1") if role == "engine"]
        assert len(gone_at) == 1
        assert all(process.start_ticks >= gone_at[0] - 2 for process in new)  # both are rounded
        assert {process.pid for process in new}.isdisjoint({process.pid for process in old})


async def test_a_wrong_argument_is_one_clear_error_and_no_restart() -> None:
    supervisor = local(engine_args={"max_model_length": 7})
    watch = supervisor.watch()
    with pytest.raises(rv.StartFailedError) as raised:
        await supervisor.__aenter__()
    assert str(raised.value).startswith(
        "TypeError: SimEngine got an unexpected argument 'max_model_length' (llm/1, incarnation 1, PERMANENT"
    )
    seen = [x async for x in watch]
    assert len([x for x in seen if isinstance(x, r.FaultSeen)]) == 1
    assert {x.incarnation for x in seen if isinstance(x, r.StateChanged)} == {1}


async def test_an_unknown_model_is_one_clear_error_and_leaves_no_process() -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(rv.StartFailedError, match="ValueError: model: /models/none does not exist"):
        await local(size=2, engine_args={"model": "/models/none"}).__aenter__()
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


async def test_a_pool_whose_engines_die_without_progress_gives_up_and_says_why() -> None:
    async def body() -> None:
        async with (
            local(
                engine_args={"crash_on_prompt": "Once"}, backoff=rv.Backoff(maximum=0.0, initial=0.0)
            ) as sup,
            sup["llm"].generate(PROMPT, GREEDY) as generation,
        ):
            await generation.result()

    with pytest.raises((rv.SupervisorGaveUpError, rv.PoisonRequestError)) as raised:
        await body()
    assert "ended by SIGKILL" in str(raised.value) or "ended by SIGKILL" in str(raised.value.__cause__)


async def test_requests_wait_while_an_engine_is_paused_and_go_on_when_it_is_resumed() -> None:
    async with local() as sup:
        await sup.pause("llm/1")
        async with anyio.create_task_group() as tasks:
            done: list[str] = []

            async def read() -> None:
                done.append((await sup["llm"].generate(PROMPT, GREEDY).result()).text)

            tasks.start_soon(read)
            await until(lambda: sup["llm"].stats().waiting == 1)
            assert done == []
            await sup.resume("llm/1")
        assert len(done) == 1


async def test_a_pool_under_a_supervisor_that_restarts_loses_no_request() -> None:
    expected = await reference(local())
    crash = anyio.Event()

    async def neighbour() -> None:
        await crash.wait()
        if crashes:
            raise RuntimeError(crashes.pop())
        await anyio.sleep_forever()

    crashes = ["boom"]
    inner = rv.SupervisorSpec(
        strategy=rv.Strategy.ONE_FOR_ALL,
        intensity=0,
        children=[*pool().children, rv.coroutine("neighbour", neighbour)],
    )
    spec = rv.SupervisorSpec(intensity=1, children=[rv.ChildSpec(id="inner", start=inner)])
    async with rv.Supervisor(spec, local=True) as sup:
        scheduler = sup["inner/llm"]
        first = core(sup, "inner/llm/1")
        async with anyio.create_task_group() as tasks:
            texts: list[str] = []

            async def read() -> None:
                texts.append((await scheduler.generate(PROMPT, GREEDY).result()).text)

            for _ in range(2):
                tasks.start_soon(read)
            await until(lambda: scheduler.stats().tokens >= 20)
            crash.set()
        assert texts == [expected] * 2
        assert sup["inner/llm"] is scheduler
        assert core(sup, "inner/llm/1") != first
        assert not alive(first)


async def test_a_terminated_pool_refuses_requests_with_the_reason_and_serves_after_its_restart() -> None:
    async with local() as sup:
        process = core(sup)
        await sup.terminate_child("llm")
        assert not alive(process)
        with pytest.raises(rv.NoEngineError):
            sup["llm"].generate(PROMPT, GREEDY)
        await sup.restart_child("llm")
        assert (await sup["llm"].generate(PROMPT, GREEDY).result()).text
        await sup.terminate_child("llm")
        await sup.delete_child("llm")
        with pytest.raises(rv.UnknownChildError):
            sup["llm"]


@pytest.mark.parametrize("path", ["llm/1", "llm", ""])
async def test_a_restart_by_hand_loses_no_request(path: str) -> None:
    expected = await reference(local())
    async with local() as sup:
        first = core(sup)
        texts: list[str] = []

        async def read() -> None:
            texts.append("".join([chunk.text async for chunk in sup["llm"].generate(PROMPT, GREEDY)]))

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(read)
            await until(lambda: sup["llm"].stats().tokens >= 20)
            await sup.restart(path)
            assert len(texts) == 0
        assert texts == [expected] * 2
        assert core(sup) != first


async def test_a_restart_by_hand_that_fails_fails_what_waits_with_its_cause(tmp_path: Path) -> None:
    async with local(engine_args={"model": str(tmp_path)}, size=1) as sup:
        generation = sup["llm"].generate(PROMPT, GREEDY)
        await until(lambda: sup["llm"].stats().tokens >= 20)
        shutil.rmtree(tmp_path)
        with pytest.raises(rv.ChildStartError, match="does not exist"):
            await sup.restart("llm")
        with pytest.raises(rv.NoEngineError, match="does not exist"):
            await generation.result()


async def test_a_pool_can_be_added_while_the_tree_runs() -> None:
    async with rv.Supervisor(rv.SupervisorSpec(), local=True) as sup:
        assert await sup.start_child(pool().children[0]) == "llm"
        assert (await sup["llm"].generate(PROMPT, GREEDY).result()).text
        wrong = rv.engine_pool("wrong", engine="sim", engine_args={"nonsense": 1})
        with pytest.raises(rv.ChildStartError, match="TypeError: SimEngine got an unexpected argument"):
            await sup.start_child(wrong)
        with pytest.raises(rv.UnknownChildError):
            sup["wrong"]


async def test_leaving_fails_what_is_still_asked_for_and_leaves_no_process() -> None:
    async with local(engine_args={"tokens_per_second": 5.0}) as sup:
        processes = [process for _, process in sup.processes("llm/1")]
        generation = sup["llm"].generate(PROMPT, GREEDY)
        await anext(generation)
    with pytest.raises(rv.NoEngineError):
        await generation.result()
    assert not any(alive(process) for process in processes)


async def test_what_was_delivered_and_why_it_ended_is_read_after_the_tree_has_ended() -> None:
    async with local(engine_args={"tokens_per_second": 50.0}) as sup:
        expected = (await sup["llm"].generate(PROMPT, GREEDY).result()).text
        generation = sup["llm"].generate(PROMPT, GREEDY)
        await until(lambda: sup["llm"].stats().tokens >= 65)
    texts: list[str] = []

    async def read() -> None:
        async for chunk in generation:
            texts.append(chunk.text)  # noqa: PERF401 - the error comes after them

    with pytest.raises(rv.NoEngineError):
        await read()
    assert texts
    assert expected.startswith("".join(texts))


async def test_progress_of_a_start_is_told() -> None:
    supervisor = local()
    watch = supervisor.watch()
    async with supervisor as sup:
        info = sup.engine_info("llm/1")
        assert info is not None
        assert info.engine == "sim"
    phases = [x.phase async for x in watch if isinstance(x, r.StartProgressed)]
    assert phases[0] == "launching"
    assert phases[-1] == "ready"
