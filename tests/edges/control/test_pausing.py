"""The three modes of pause, and combined holds, through the socket with simulated engines."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor._backends.process.identity import alive
from rayvisor._core.supervision import messages as m
from tests.edges.control.http_client import GREEDY, PROMPT, get, pool, post, states, tree
from tests.waiting import until

SLOW = {"tokens_per_second": 30.0}  # slow enough for a stall of a second to make no difference


def kill_core(sup: rv.Supervisor, child: str) -> None:
    pids = [p.pid for role, p in sup.processes(child) if role == "engine" and "EngineCore" in p.name]
    os.kill(pids[0], signal.SIGKILL)


class Readers:
    """Requests whose streams are read in the background."""

    def __init__(self, scheduler: rv.EnginePool, tasks: anyio.abc.TaskGroup) -> None:
        self.scheduler = scheduler
        self.tasks = tasks
        self.texts: list[str] = []
        self.tokens = 0

    def ask(self, count: int, **options: Any) -> None:
        for _ in range(count):
            self.tasks.start_soon(self._read, options)

    async def until_silent(self, seconds: float) -> None:
        """Wait until nothing has arrived for a while, after everything in transit has."""
        with anyio.fail_after(60.0):
            told = -1
            while told != self.tokens:
                told = self.tokens
                await anyio.sleep(seconds)

    async def _read(self, options: dict[str, Any]) -> None:
        text = ""
        async for chunk in self.scheduler.generate(PROMPT, GREEDY, **options):
            text += chunk.text
            self.tokens += len(chunk.token_ids)
        self.texts.append(text)


@pytest.fixture(scope="module")
def expected() -> str:
    async def undisturbed() -> str:
        spec = rv.SupervisorSpec(children=[pool()])
        async with rv.Supervisor(spec, local=True, handle_signals=False) as sup:
            return str((await sup["llm"].generate(PROMPT, GREEDY).result()).text)

    return anyio.run(undisturbed)


async def test_wait_returns_when_what_was_in_flight_has_finished(tmp_path: Path, expected: str) -> None:
    async with tree(tmp_path, pool(engine_args=SLOW)) as (sup, path), anyio.create_task_group() as tasks:
        readers = Readers(sup["llm"], tasks)
        readers.ask(3)
        await until(lambda: readers.tokens > 10)
        status, told = await post(path, "/pause", {"path": "llm", "mode": "wait"})
        assert (status, told["in_flight"]) == (200, 0)
        await until(lambda: len(readers.texts) == 3)
        readers.ask(2)  # new work waits
        await until(lambda: sup["llm"].stats().waiting == 2)
        assert (await states(path))["llm/1"] == "PAUSED.REQUESTED"
        assert (await post(path, "/resume", {"path": "llm"}))[0] == 200
        await until(lambda: len(readers.texts) == 5)
    assert readers.texts == [expected] * 5


async def test_wait_says_what_is_left_when_its_deadline_ends_and_the_pause_holds(
    tmp_path: Path, expected: str
) -> None:
    async with tree(tmp_path, pool(engine_args=SLOW)) as (sup, path), anyio.create_task_group() as tasks:
        readers = Readers(sup["llm"], tasks)
        readers.ask(2)
        await until(lambda: readers.tokens > 4)
        _, told = await post(path, "/pause", {"timeout": 0.05})
        assert told["in_flight"] == 2
        assert (await states(path))["llm/1"] == "PAUSED.REQUESTED"
        await until(lambda: len(readers.texts) == 2)
    assert readers.texts == [expected] * 2


async def test_wait_ends_when_the_pause_is_taken_back(tmp_path: Path) -> None:
    slower = pool(engine_args={"tokens_per_second": 5.0})
    async with tree(tmp_path, slower) as (sup, path), anyio.create_task_group() as tasks:
        readers = Readers(sup["llm"], tasks)
        readers.ask(1)
        await until(lambda: readers.tokens > 0)
        answers: list[Any] = []

        async def pause() -> None:
            answers.append(await post(path, "/pause", {"path": "llm/1", "timeout": 60}))

        tasks.start_soon(pause)
        await until(lambda: sup.status("llm/1").leaf == "REQUESTED")
        await post(path, "/resume", {"path": "llm/1"})
        await until(lambda: answers)
        assert answers[0][1]["in_flight"] == 1
        tasks.cancel_scope.cancel()


async def test_abort_moves_what_is_in_flight_to_another_engine(tmp_path: Path, expected: str) -> None:
    async with tree(tmp_path, pool(size=2, engine_args=SLOW)) as (sup, path):
        async with anyio.create_task_group() as tasks:
            readers = Readers(sup["llm"], tasks)
            readers.ask(4, max_attempts=1)  # a move by an operator is not an attempt
            await until(lambda: readers.tokens > 20)
            _, told = await post(path, "/pause", {"path": "llm/1", "mode": "abort"})
            assert told["in_flight"] == 0
            engines = {engine.child: engine.in_flight for engine in sup["llm"].stats().engines}
            assert engines == {"llm/1": 0, "llm/2": 4}
        assert readers.texts == [expected] * 4
        assert sup["llm"].stats().failed == 0


async def test_abort_of_the_only_engine_loses_nothing_and_goes_on_after_resume(
    tmp_path: Path, expected: str
) -> None:
    async with tree(tmp_path, pool(engine_args=SLOW)) as (sup, path):
        async with anyio.create_task_group() as tasks:
            readers = Readers(sup["llm"], tasks)
            readers.ask(3, max_attempts=1)
            await until(lambda: readers.tokens > 20)
            _, told = await post(path, "/pause", {"mode": "abort"})
            assert told["in_flight"] == 0
            assert sup["llm"].stats().returning == 3
            await post(path, "/resume")
        assert readers.texts == [expected] * 3


async def test_keep_holds_what_is_in_flight_and_is_not_taken_for_a_hang(
    tmp_path: Path, expected: str
) -> None:
    stall_after = 0.4
    patience = {"stall_after": stall_after, "probe_interval": 0.1, "failure_threshold": (2, 3)}
    async with tree(tmp_path, pool(engine_args=SLOW, **patience)) as (sup, path):
        async with anyio.create_task_group() as tasks:
            readers = Readers(sup["llm"], tasks)
            readers.ask(2)
            await until(lambda: readers.tokens > 10)
            _, told = await post(path, "/pause", {"mode": "keep"})
            assert told["in_flight"] == 2
            await readers.until_silent(4 * stall_after)  # four times as long as a hang
            assert readers.tokens < 100
            await post(path, "/resume")
        assert readers.texts == [expected] * 2
        assert sup.status("llm/1").incarnation == 1


@pytest.mark.parametrize("mode", ["wait", "abort"])
async def test_a_pause_in_another_mode_lets_go_of_what_was_kept(
    tmp_path: Path, expected: str, mode: str
) -> None:
    async with tree(tmp_path, pool(engine_args=SLOW)) as (sup, path):
        async with anyio.create_task_group() as tasks:
            readers = Readers(sup["llm"], tasks)
            readers.ask(2)
            await until(lambda: readers.tokens > 10)
            await post(path, "/pause", {"mode": "keep"})
            _, told = await post(path, "/pause", {"mode": mode})
            assert told["in_flight"] == 0
            await post(path, "/resume")
        assert readers.texts == [expected] * 2


@pytest.mark.parametrize("mode", ["keep", "abort"])
async def test_an_engine_that_is_killed_while_paused_comes_back_paused(
    tmp_path: Path, expected: str, mode: str
) -> None:
    async with tree(tmp_path, pool(engine_args=SLOW)) as (sup, path):
        async with anyio.create_task_group() as tasks:
            readers = Readers(sup["llm"], tasks)
            readers.ask(2)
            await until(lambda: readers.tokens > 10)
            await post(path, "/pause", {"path": "llm/1", "mode": mode, "timeout": 0})
            kill_core(sup, "llm/1")
            await until(
                lambda: sup.status("llm/1").incarnation == 2 and sup.status("llm/1").state == "PAUSED"
            )
            assert sup.status("llm/1").holds == ("REQUESTED",)
            assert sup["llm"].stats().in_flight == 0
            await post(path, "/resume", {"path": "llm/1"})
        assert readers.texts == [expected] * 2


async def test_a_pause_while_an_engine_restarts_holds_when_it_is_up(tmp_path: Path, expected: str) -> None:
    async with tree(tmp_path, pool(engine_args={"start_delay": 0.5})) as (sup, path):
        async with anyio.create_task_group() as tasks:
            kill_core(sup, "llm/1")
            await until(lambda: sup.status("llm/1").leaf == "STARTING")
            readers = Readers(sup["llm"], tasks)
            readers.ask(1)
            await post(path, "/pause", {"path": "llm"})
            assert sup.status("llm/1").holds == ("REQUESTED",)
            await until(lambda: sup.status("llm/1").leaf == "REQUESTED")
            assert readers.tokens == 0
            await post(path, "/resume", {"path": "llm"})
        assert readers.texts == [expected]


async def test_a_resume_while_an_engine_restarts_takes_the_pause_back(tmp_path: Path) -> None:
    async with tree(tmp_path, pool(engine_args={"start_delay": 0.3})) as (sup, path):
        await post(path, "/pause")
        kill_core(sup, "llm/1")
        await until(lambda: sup.status("llm/1").leaf == "STARTING")
        await post(path, "/resume")
        await until(lambda: sup.status("llm/1").state == "ALIVE")


@pytest.mark.parametrize("restarted", ["llm/1", "llm", ""])
async def test_a_pause_outlives_a_restart_of_the_child_its_pool_or_all(
    tmp_path: Path, restarted: str
) -> None:
    async with tree(tmp_path, pool()) as (sup, path):
        await post(path, "/pause", {"path": "llm/1"})
        assert (await post(path, "/restart", {"path": restarted}))[0] == 200
        await until(lambda: sup.status("llm/1").state == "PAUSED")
        assert sup.status("llm/1").holds == ("REQUESTED",)
        await post(path, "/resume", {"path": "llm/1"})
        assert (await post(path, "/restart", {"path": "llm"}))[0] == 200
        await until(lambda: sup.status("llm/1").leaf == "SERVING")


async def test_a_child_that_is_added_to_a_paused_pool_is_paused(tmp_path: Path) -> None:
    async with tree(tmp_path, pool()) as (sup, path):
        await post(path, "/pause", {"path": "llm"})
        template = await sup.get_childspec("llm/1")
        await sup.start_child(rv.ChildSpec(id="2", start=template.start), under="llm")
        await until(lambda: sup.status("llm/2").leaf == "REQUESTED")
        await post(path, "/resume", {"path": "llm"})
        assert (await states(path))["llm/2"] == "ALIVE.SERVING"


async def test_holds_combine_and_the_leaf_shows_the_first(tmp_path: Path) -> None:
    async with tree(tmp_path, pool()) as (sup, path):
        runtime = sup._running.runtime

        async def told(event: str, *holds: str) -> str:
            runtime.post(m.Reported("llm/1", sup.status("llm/1").incarnation, event))
            await until(lambda: sup.status("llm/1").holds == holds)
            return sup.status("llm/1").leaf

        await post(path, "/pause", {"path": "llm/1"})
        assert await told("stale", "STALE", "REQUESTED") == "STALE"
        await post(path, "/resume", {"path": "llm/1"})
        assert sup.status("llm/1").holds == ("STALE",)
        assert sup["llm"].stats().engines[0].serving is False
        await post(path, "/pause", {"path": "llm/1"})
        assert await told("synced", "REQUESTED") == "REQUESTED"
        assert await told("stale", "STALE", "REQUESTED") == "STALE"
        kill_core(sup, "llm/1")  # the incarnation takes its old weights with it; the pause request stays
        await until(lambda: sup.status("llm/1").incarnation == 2 and sup.status("llm/1").state == "PAUSED")
        assert sup.status("llm/1").holds == ("REQUESTED",)
        runtime.post(m.Reported("llm/1", 2, "unhealthy"))  # this engine cannot recover in place
        await until(lambda: sup.status("llm/1").incarnation == 3 and sup.status("llm/1").state == "PAUSED")
        assert sup.status("llm/1").holds == ("REQUESTED",)
        _, form = await get(path, "/fault_tolerance/status")
        assert form["engines"][0]["status"] == "healthy"


async def test_a_paused_tree_is_stopped_in_order_and_leaves_no_process(tmp_path: Path) -> None:
    processes = []
    async with tree(tmp_path, pool(engine_args=SLOW)) as (sup, path):
        processes = [process for _, process in sup.processes("llm/1")]
        generation = sup["llm"].generate(PROMPT, GREEDY)
        await anext(generation)
        await post(path, "/pause", {"mode": "keep"})
        await post(path, "/stop")
        await generation.result()
    assert len(processes) == 2
    assert not any(alive(process) for process in processes)


async def test_engines_of_one_process_do_not_take_each_others_processes_for_their_own(tmp_path: Path) -> None:
    async with tree(tmp_path, pool(size=2)) as (sup, path):
        of = {child: {p.pid for _, p in sup.processes(child)} for child in ("llm/1", "llm/2")}
        assert [len(pids) for pids in of.values()] == [2, 2]
        assert len(set().union(*of.values())) == 4
        await post(path, "/restart", {"path": "llm/1"})
        assert {child: sup.status(child).incarnation for child in of} == {"llm/1": 2, "llm/2": 1}
