"""An engine that hangs is found by what it does not do; one that is busy is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rayvisor._backends.host.engine import EngineStartFailedError
from rayvisor._backends.host.host import EngineHost
from rayvisor._backends.host.liveness import LivenessMonitor
from rayvisor._core.protocol.wire import (
    Chunk,
    EngineInfo,
    GenerateCommand,
    HostItem,
    Suspicion,
    Terminated,
    Worked,
)
from rayvisor.faults import Cause, Termination
from rayvisor.specs import StallLimits
from tests.backends.driving import Result, Served, alive, order
from tests.waiting import until

# Scaled down; a process that wants a core and gets none on a crowded machine counts as busy.
LIMITS = StallLimits(stall_after=1.5, step_limit=60.0, probe_interval=0.25, failure_threshold=(2, 4))
PARAMS = {"temperature": 0.0, "ignore_eos": True}


class Hosted:
    """A host with an engine of short patience, and all that it says."""

    def __init__(self, folder: Path) -> None:
        self.host = EngineHost("llm/1", 1, "sim", str(folder))
        self.items: list[HostItem] = []
        self.empty = 0
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for items in self.host.stream():
            self.items += items
            self.empty += not items

    async def start(self, limits: StallLimits = LIMITS, **arguments: Any) -> EngineInfo:
        self.info = await self.host.ensure_started(1, {"max_model_len": 4096, **arguments}, 60, limits)
        return self.info

    async def submit(self, count: int = 3, max_tokens: int = 4000, incarnation: int = 1) -> None:
        orders = [
            GenerateCommand(f"r{number}", incarnation, "A", {**PARAMS, "max_tokens": max_tokens})
            for number in range(count)
        ]
        await self.host.submit(incarnation, orders)

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pid(name), number)

    def pid(self, name: str) -> int:
        return next(process.pid for process in self.info.processes if name in process.name)

    def of(self, kind: type) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]

    def streaming(self, count: int = 3) -> bool:
        return {chunk.request for chunk in self.of(Chunk)} == {f"r{number}" for number in range(count)}

    def finished(self) -> int:
        return sum(chunk.finish_reason is not None for chunk in self.of(Chunk))

    async def death(self) -> Termination:
        await until(lambda: self.of(Terminated))
        (item,) = self.of(Terminated)
        assert isinstance(item, Terminated)
        return item.termination


@pytest_asyncio.fixture
async def hosted(tmp_path: Path) -> AsyncIterator[Hosted]:
    made = Hosted(tmp_path)
    yield made
    made.reading.cancel()
    await asyncio.wait([made.reading])
    await made.host.stop_engine(1_000_000, 0.0)
    await made.host.stop_engine(made.host._incarnation, 0.0)


@pytest.mark.parametrize(
    ("name", "number", "root"),
    [
        ("EngineCore", signal.SIGSTOP, "ProcessStopped: EngineCore (pid {pid}) is stopped (SIGSTOP)"),
        ("Worker", signal.SIGSTOP, "ProcessStopped: Worker (pid {pid}) is stopped (SIGSTOP)"),
        ("Worker", signal.SIGUSR1, "EngineStalled: no token for "),
    ],
    ids=["stop-core", "stop-worker", "endless-step"],
)
async def test_an_engine_that_hangs_is_suspect_then_dead_with_what_holds_it_as_root_cause(
    hosted: Hosted, name: str, number: int, root: str
) -> None:
    info = await hosted.start()
    await hosted.submit()
    await until(hosted.streaming)
    hosted.signal(name, number)
    died = await hosted.death()
    assert str(died.root).startswith(root.format(pid=hosted.pid(name)))
    assert died.causes[0].type == "EngineStalled"
    assert " with 3 requests queued" in died.causes[0].message
    assert not died.permanent
    (suspicion,) = hosted.of(Suspicion)
    assert suspicion.causes[0].type == "EngineSuspect"
    await until(lambda: not alive(info.processes))
    await hosted.host.ensure_started(2, {"tokens_per_second": 0}, 60, LIMITS)
    await hosted.submit(max_tokens=20, incarnation=2)
    await until(lambda: hosted.finished() == 3)


async def test_a_step_that_computes_for_ever_is_ended_at_the_step_limit(hosted: Hosted) -> None:
    await hosted.start(
        StallLimits(stall_after=1.0, step_limit=2.5, probe_interval=0.25, failure_threshold=(2, 4))
    )
    await hosted.submit()
    await until(hosted.streaming)
    hosted.signal("Worker", signal.SIGUSR2)
    died = await hosted.death()
    (cause,) = died.causes
    name, message = cause.type, cause.message
    assert name == "EngineStalled"
    assert float(message.split()[3]) >= 2.5
    doing = message.partition(f"Worker (pid {hosted.pid('Worker')}) ")[2]
    assert doing.startswith(
        ("takes ", "computes")
    )  # a share of a core, or on a crowded machine less than half


async def test_an_engine_that_was_stopped_for_a_moment_is_clear_again_and_loses_nothing(
    hosted: Hosted,
) -> None:
    await hosted.start(
        StallLimits(stall_after=60.0, step_limit=60.0, probe_interval=0.1, failure_threshold=(2, 4))
    )
    await hosted.submit(max_tokens=200)
    await until(hosted.streaming)
    hosted.signal("EngineCore", signal.SIGSTOP)
    await until(lambda: hosted.of(Suspicion))
    hosted.signal("EngineCore", signal.SIGCONT)
    await until(lambda: hosted.finished() == 3)
    await until(lambda: len(hosted.of(Suspicion)) == 2)
    assert hosted.of(Suspicion)[-1].causes == ()
    assert hosted.of(Terminated) == []


async def test_an_idle_engine_that_is_stopped_is_found_by_a_probe_which_nobody_else_sees(
    hosted: Hosted,
) -> None:
    await hosted.start()
    hosted.signal("Worker", signal.SIGSTOP)
    died = await hosted.death()
    assert "with a probe queued" in died.causes[0].message
    assert died.causes[-1].type == "ProcessStopped"
    assert hosted.of(Chunk) == []


async def test_an_idle_engine_that_answers_its_probe_goes_on(hosted: Hosted) -> None:
    await hosted.start(
        StallLimits(stall_after=60.0, step_limit=60.0, probe_interval=0.1, failure_threshold=(2, 4))
    )
    hosted.signal("EngineCore", signal.SIGSTOP)
    await until(lambda: hosted.of(Suspicion))
    hosted.signal("EngineCore", signal.SIGCONT)
    await until(lambda: len(hosted.of(Suspicion)) == 2)
    await hosted.submit(max_tokens=20)
    await until(lambda: hosted.finished() == 3)
    assert {chunk.request for chunk in hosted.of(Chunk)} == {"r0", "r1", "r2"}


async def test_requests_that_are_aborted_unserved_do_not_save_a_hanging_engine(hosted: Hosted) -> None:
    await hosted.start()
    await hosted.submit()
    await until(hosted.streaming)
    hosted.signal("Worker", signal.SIGUSR1)
    await until(lambda: hosted.of(Suspicion))
    await hosted.host.abort([(f"r{number}", 1) for number in range(3)])
    died = await hosted.death()
    assert "with a probe queued" in died.causes[0].message


@pytest.mark.parametrize(
    ("arguments", "count"),
    [({"prefill_seconds": 0.8}, 2), ({"max_num_seqs": 2, "tokens_per_second": 0}, 100)],
    ids=["long prefill", "a queue of 100"],
)
async def test_a_busy_engine_raises_no_alarm(hosted: Hosted, arguments: dict[str, Any], count: int) -> None:
    await hosted.start(
        StallLimits(stall_after=0.5, step_limit=120.0, probe_interval=0.25, failure_threshold=(2, 4)),
        **arguments,
    )
    await hosted.submit(count, max_tokens=20)
    await until(lambda: hosted.finished() == count)
    assert hosted.of(Terminated) == []


async def test_a_start_that_computes_is_given_longer_than_its_deadline(hosted: Hosted) -> None:
    limits = StallLimits(total_start_timeout=240.0)
    info = await hosted.host.ensure_started(1, {"compile_seconds": 2.5}, 1.5, limits)
    assert info.startup_seconds > 2.5


async def test_a_start_that_hangs_after_some_progress_is_given_its_deadline_from_then_on(
    hosted: Hosted,
) -> None:
    late = r"StartTimeout: .* not up after \d+\.\d s, the last 2 s without progress, while loading"
    with pytest.raises(EngineStartFailedError, match=late):
        await hosted.host.ensure_started(1, {"compile_seconds": 1.0, "start_delay": 600.0}, 2.0, LIMITS)


async def test_a_start_whose_process_was_stopped_names_the_process(hosted: Hosted) -> None:
    def cores() -> list[int]:
        engine = hosted.host._engine
        return [each.pid for each in engine.processes() if "EngineCore" in each.name] if engine else []

    async def stop_it() -> None:
        await until(cores)
        os.kill(cores()[0], signal.SIGSTOP)

    stopping = asyncio.create_task(stop_it())
    stopped = r"ProcessStopped: EngineCore \(pid \d+\) is stopped \(SIGSTOP\)"
    with pytest.raises(EngineStartFailedError, match=stopped) as failed:
        await hosted.host.ensure_started(1, {"start_delay": 600.0}, 4.0, LIMITS)
    await stopping
    assert [cause.type for cause in failed.value.termination.causes] == ["StartTimeout", "ProcessStopped"]


async def test_a_start_is_bounded_in_all_whatever_progress_it_makes(hosted: Hosted) -> None:
    limits = StallLimits(total_start_timeout=2.0)
    with pytest.raises(EngineStartFailedError, match=r"not up after [2-9]\.\d s, while loading"):
        await hosted.host.ensure_started(1, {"compile_seconds": 600.0}, 1.5, limits)


async def test_a_host_with_nothing_to_say_is_heard_all_the_same(hosted: Hosted) -> None:
    await hosted.start(StallLimits(probe_interval=0.1))
    await until(lambda: hosted.empty >= 5)


class Watched:
    """An engine of the contract tests under a vigil of its own."""

    def __init__(self, served: Served, limits: StallLimits) -> None:
        self.told: list[Suspicion | Worked] = []
        self.monitor = LivenessMonitor(served.live, 1, limits, self.told.append, "")
        self.stalled = asyncio.create_task(self.monitor.stalled())
        self._served = served

    async def run(self, given: GenerateCommand, into: Result) -> None:
        chunks = self._served.live.generate(given)
        while (chunk := await self.monitor.next_of(chunks)) is not None:
            into.chunks.append(chunk)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_a_stopped_process_of_any_engine_is_named_and_when_it_goes_on_so_do_its_requests(
    served: Served, name: str
) -> None:
    limits = StallLimits(stall_after=2.0, step_limit=60.0, probe_interval=0.25, failure_threshold=(2, 4))
    watched, result = Watched(served, limits), Result()
    running = asyncio.create_task(watched.run(order("A", max_tokens=240, ignore_eos=True), result))
    await until(lambda: result.chunks)
    process = served.process(name)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        died = await asyncio.wait_for(watched.stalled, 60)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert died.causes[-1] == Cause("ProcessStopped", f"{name} (pid {process.pid}) is stopped (SIGSTOP)")
    assert len(watched.told) == 1
    await asyncio.wait_for(running, 60)
    assert len(result.tokens) == 240


@pytest.mark.asyncio(loop_scope="session")
async def test_any_engine_that_is_idle_or_works_raises_no_alarm(served: Served) -> None:
    limits = StallLimits(stall_after=5.0, step_limit=60.0, probe_interval=0.25, failure_threshold=(20, 20))
    watched = Watched(served, limits)
    results = [Result() for _ in range(20)]
    orders = [order("A", max_tokens=100, ignore_eos=True) for _ in results]
    await asyncio.wait_for(asyncio.gather(*map(watched.run, orders, results)), 240)
    assert not watched.stalled.done()
    assert watched.told == []
    watched.stalled.cancel()
