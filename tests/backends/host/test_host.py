"""The host: one stream, fences, starts that are asked for twice, engines that follow each other."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rayvisor._backends.host.engine import EngineStartFailedError
from rayvisor._backends.host.host import EngineHost
from rayvisor._backends.sim.sim_engine import SimEngine
from rayvisor._core.protocol.wire import Chunk, GenerateCommand, HostItem, Lost, Phase, Refused, Terminated
from rayvisor.faults import Cause, FaultClass, classify
from rayvisor.timeouts import DEFAULT_TIMEOUTS, HostTimeouts, Timeouts
from tests.backends.driving import alive
from tests.waiting import until

FAST = {"tokens_per_second": 0, "max_model_len": 4096}
GREEDY = {"temperature": 0.0, "ignore_eos": True}


class Reader:
    """Reads a host's stream."""

    def __init__(self, host: EngineHost) -> None:
        self.lists: list[list[HostItem]] = []
        self.times: list[float] = []
        self.task = asyncio.create_task(self._read(host))

    async def _read(self, host: EngineHost) -> None:
        async for items in host.stream():
            self.lists.append(items)
            self.times.append(time.monotonic())

    def of(self, kind: type, request: str | None = None) -> list[Any]:
        return [
            item
            for items in self.lists
            for item in items
            if isinstance(item, kind) and (request is None or getattr(item, "request", None) == request)
        ]

    def tokens(self, request: str) -> list[int]:
        return [token for chunk in self.of(Chunk, request) for token in chunk.token_ids]

    def finished(self, request: str) -> bool:
        return any(chunk.finish_reason for chunk in self.of(Chunk, request))


@pytest_asyncio.fixture
async def host(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[EngineHost]:
    """A host; a test may parametrize it with other timeouts."""
    timeouts = getattr(request, "param", DEFAULT_TIMEOUTS)
    made = EngineHost("llm/1", 1, "sim", str(tmp_path), timeouts=timeouts)
    yield made
    await made.stop_engine(1_000_000, 0.0)
    await made.stop_engine(made._incarnation, 0.0)


@pytest_asyncio.fixture
async def reader(host: EngineHost) -> AsyncIterator[Reader]:
    made = Reader(host)
    yield made
    made.task.cancel()
    await asyncio.wait([made.task])


def order(request: str, attempt: int = 1, prompt: str = "A", **params: Any) -> GenerateCommand:
    return GenerateCommand(request, attempt, prompt, {**GREEDY, "max_tokens": 20, **params})


async def test_tokens_of_all_requests_come_through_one_stream(host: EngineHost, reader: Reader) -> None:
    await host.ensure_started(1, FAST, 60)
    await host.submit(1, [order(f"r{i}", prompt=f"prompt {i}") for i in range(5)])
    await until(lambda: all(reader.finished(f"r{i}") for i in range(5)))
    assert [len(reader.tokens(f"r{i}")) for i in range(5)] == [20] * 5
    assert len({tuple(reader.tokens(f"r{i}")) for i in range(5)}) == 5


async def test_at_most_one_list_comes_a_tick_and_none_is_late_when_idle(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, FAST, 60)
    await host.submit(1, [order(f"r{i}", max_tokens=300) for i in range(8)])
    await until(lambda: all(reader.finished(f"r{i}") for i in range(8)))
    gaps = [later - earlier for earlier, later in zip(reader.times, reader.times[1:], strict=False)]
    assert min(gaps) >= DEFAULT_TIMEOUTS.host.batch_interval_urgent * 0.9
    assert len(reader.lists) < sum(len(items) for items in reader.lists)


@pytest.mark.parametrize("host", [Timeouts(host=HostTimeouts(batch_interval=60.0))], indirect=True)
async def test_while_tokens_flow_they_go_together_and_a_first_one_does_not_wait(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, {"max_model_len": 4096}, 60)
    await host.submit(1, [order("long", max_tokens=4000)])
    await until(lambda: reader.tokens("long"))
    before = len(reader.tokens("long"))
    await host.submit(1, [order("short")])
    await until(lambda: reader.tokens("short"))  # long before the tick, and all there is goes with it
    await host.submit(1, [order("refused", temperature=-1.0)])
    await until(lambda: reader.of(Refused))
    assert len(reader.tokens("long")) > before
    assert len(reader.of(Chunk, "long")) <= len(reader.lists)


async def test_a_start_that_is_asked_for_twice_happens_once(host: EngineHost, reader: Reader) -> None:
    first, second = await asyncio.gather(host.ensure_started(1, FAST, 10), host.ensure_started(1, FAST, 60))
    again = await host.ensure_started(1, FAST, 60)
    assert first == second == again
    await until(lambda: reader.of(Phase))
    assert [phase.phase for phase in reader.of(Phase)].count("launching") == 1


async def test_a_caller_that_goes_away_does_not_take_the_start_with_it(host: EngineHost) -> None:
    caller = asyncio.create_task(host.ensure_started(1, {**FAST, "start_delay": 0.3}, 60))
    await until(lambda: host._engine is not None)
    caller.cancel()
    info = await host.ensure_started(1, FAST, 60)
    assert len(alive(info.processes)) == 2


async def test_a_start_that_failed_fails_again_the_same_way(host: EngineHost) -> None:
    causes = []
    for _ in range(2):
        with pytest.raises(EngineStartFailedError) as failed:
            await host.ensure_started(1, {"fail_start": "no"}, 60)
        causes.append(failed.value.termination.causes)
    assert causes[0] == causes[1]
    assert causes[0][-1] == Cause("RuntimeError", "no")


async def test_a_start_past_its_deadline_fails_and_leaves_nothing(host: EngineHost) -> None:
    late = r"not up after \d\.\d s, the last 0\.5 s without progress, while loading"
    with pytest.raises(EngineStartFailedError, match=late) as failed:
        await host.ensure_started(1, {"start_delay": 30}, 0.5)
    assert failed.value.termination.overdue
    assert not failed.value.termination.permanent
    assert not host._serving
    assert (await host.ensure_started(2, FAST, 60)).processes


async def test_a_wrong_configuration_is_permanent_in_a_host_that_has_served_before(host: EngineHost) -> None:
    await host.ensure_started(1, FAST, 60)
    with pytest.raises(EngineStartFailedError, match="no_such_argument") as failed:
        await host.ensure_started(2, {**FAST, "no_such_argument": 1}, 60)
    assert failed.value.termination.permanent
    assert classify(failed.value.termination, starting=True, served=True) is FaultClass.PERMANENT
    assert (await host.ensure_started(3, FAST, 60)).processes


async def test_an_error_of_a_start_that_may_pass_is_not_permanent(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def launch(_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no process can be made now")

    with monkeypatch.context() as patch:
        patch.setattr(SimEngine, "_launch", launch)
        with pytest.raises(EngineStartFailedError) as failed:
            await host.ensure_started(1, FAST, 60)
    assert not failed.value.termination.permanent
    assert classify(failed.value.termination, starting=True, served=True) is FaultClass.FATAL


async def test_an_unknown_kind_of_engine_is_a_failed_start_no_other_can_cure(tmp_path: Path) -> None:
    host = EngineHost("llm/1", 1, "gpt", str(tmp_path))
    with pytest.raises(EngineStartFailedError, match="engine must be one of server, sim, vllm") as failed:
        await host.ensure_started(1, {}, 60)
    assert failed.value.termination.permanent


async def test_a_newer_incarnation_ends_the_older_engine_first(host: EngineHost) -> None:
    older = await host.ensure_started(1, FAST, 60)
    newer = await host.ensure_started(2, FAST, 60)
    assert alive(older.processes) == []
    assert len(alive(newer.processes)) == 2


async def test_an_older_incarnation_never_starts_once_a_newer_one_was_asked_for(host: EngineHost) -> None:
    newer = await host.ensure_started(2, FAST, 60)
    with pytest.raises(EngineStartFailedError) as failed:
        await host.ensure_started(1, FAST, 60)
    assert failed.value.termination.causes[0].type == "StaleIncarnation"
    assert len(alive(newer.processes)) == 2


async def test_an_incarnation_never_starts_once_it_was_stopped(host: EngineHost) -> None:
    await host.stop_engine(3, 1.0)
    for incarnation in (2, 3):
        with pytest.raises(EngineStartFailedError, match="stopped"):
            await host.ensure_started(incarnation, FAST, 60)
    assert (await host.ensure_started(4, FAST, 60)).processes


async def test_a_stop_while_starting_ends_the_start(host: EngineHost) -> None:
    starting = asyncio.create_task(host.ensure_started(1, {"start_delay": 30}, 60))
    await until(lambda: host._engine is not None and host._engine.processes())
    assert host._engine is not None
    processes = host._engine.processes()
    await host.stop_engine(1, 0.0)
    with pytest.raises(EngineStartFailedError, match="stopped"):
        await starting
    assert alive(processes) == []


async def test_a_stop_of_an_older_incarnation_does_not_touch_the_newer(host: EngineHost) -> None:
    info = await host.ensure_started(2, FAST, 60)
    await host.stop_engine(1, 0.0)
    assert len(alive(info.processes)) == 2


@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_a_death_is_told_once_at_once_and_the_next_incarnation_serves(
    host: EngineHost, reader: Reader, name: str
) -> None:
    info = await host.ensure_started(1, {"max_model_len": 4096}, 60)
    await host.submit(1, [order(f"r{i}", max_tokens=4000) for i in range(3)])
    await until(lambda: all(reader.tokens(f"r{i}") for i in range(3)))
    os.kill(next(each.pid for each in info.processes if name in each.name), signal.SIGKILL)
    await until(lambda: reader.of(Terminated))
    (item,) = reader.of(Terminated)
    died = item.termination
    assert died.causes[-1].type == "ProcessKilled"
    assert reader.of(Lost) == reader.of(Refused) == []
    assert isinstance(reader.lists[-1][-1], Terminated)
    await host.ensure_started(2, FAST, 60)
    await host.submit(2, [order("r0", attempt=2)])
    await until(lambda: reader.finished("r0"))
    assert alive(info.processes) == []


async def test_an_order_for_an_incarnation_that_does_not_serve_is_given_back(
    host: EngineHost, reader: Reader
) -> None:
    await host.submit(1, [order("early")])
    await host.ensure_started(2, FAST, 60)
    await host.submit(1, [order("late")])
    await until(lambda: len(reader.of(Lost)) == 2)
    assert [(lost.request, lost.attempt) for lost in reader.of(Lost)] == [("early", 1), ("late", 1)]


async def test_a_newer_attempt_ends_the_older_and_an_older_one_is_ignored(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, {"max_model_len": 4096}, 60)
    await host.submit(1, [order("r", attempt=2, max_tokens=4000)])
    await until(lambda: reader.tokens("r"))
    await host.submit(1, [order("r", attempt=3, max_tokens=5)])
    await host.submit(1, [order("r", attempt=2, max_tokens=5), order("r", attempt=3, max_tokens=5)])
    await until(lambda: reader.finished("r"))
    attempts = [chunk.attempt for chunk in reader.of(Chunk, "r")]
    assert attempts == sorted(attempts)
    assert sum(len(chunk.token_ids) for chunk in reader.of(Chunk, "r") if chunk.attempt == 3) == 5
    await until(lambda: not host._pumps)


async def test_an_aborted_request_sends_nothing_more_and_a_newer_attempt_is_not_meant(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, {"max_model_len": 4096}, 60)
    await host.submit(1, [order("old", attempt=1, max_tokens=4000), order("new", attempt=2, max_tokens=40)])
    await until(lambda: reader.tokens("old") and reader.tokens("new"))
    await host.abort([("old", 1), ("new", 1), ("unknown", 1)])
    await until(lambda: reader.finished("new"))
    assert not reader.finished("old")
    await until(lambda: "old" not in host._pumps)


async def test_a_slow_reader_s_request_is_not_read_for_until_it_asks(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, {"max_model_len": 4096, "tokens_per_second": 1000}, 60)
    await host.submit(1, [order("slow", max_tokens=3000), order("quick", max_tokens=300)])
    await until(lambda: reader.tokens("slow"))
    await host.flow("slow", 1, is_open=False)
    await host.flow("slow", 7, is_open=True)  # another attempt: not meant
    await asyncio.sleep(3 * DEFAULT_TIMEOUTS.host.batch_interval)
    before = len(reader.tokens("slow"))
    await until(lambda: reader.finished("quick"))
    assert len(reader.tokens("slow")) == before
    await host.flow("slow", 1, is_open=True)
    await until(lambda: reader.finished("slow"))
    assert len(reader.tokens("slow")) == 3000


async def test_without_a_reader_the_host_stops_reading_from_its_engine(host: EngineHost) -> None:
    await host.ensure_started(1, FAST, 60)
    await host.submit(1, [order(f"r{i}", max_tokens=2000) for i in range(8)])
    await until(lambda: host._batcher.paced == 8)
    await asyncio.sleep(5 * DEFAULT_TIMEOUTS.host.batch_interval)
    assert len([item for item in host._batcher.items if isinstance(item, Chunk)]) == 8
    reader = Reader(host)
    await until(lambda: all(reader.finished(f"r{i}") for i in range(8)))
    assert all(len(reader.tokens(f"r{i}")) == 2000 for i in range(8))
    reader.task.cancel()


async def test_a_newer_stream_ends_the_older_one(host: EngineHost, reader: Reader) -> None:
    await until(lambda: host._batcher.reader == 1)
    newer = Reader(host)
    await asyncio.wait_for(reader.task, 60)
    await host.ensure_started(1, FAST, 60)
    await host.submit(1, [order("r")])
    await until(lambda: newer.finished("r"))
    newer.task.cancel()


async def test_what_is_wrong_with_one_request_comes_as_an_item_of_its_own(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, {**FAST, "lose_on_prompt": "lose me"}, 60)
    await host.submit(1, [order("wrong", temprature=1), order("lost", prompt="lose me"), order("fine")])
    await until(lambda: reader.finished("fine") and reader.of(Lost))
    (refused,) = reader.of(Refused)
    assert refused.request == "wrong"
    assert refused.causes == (Cause("TypeError", "Unexpected keyword argument 'temprature'"),)
    (lost,) = reader.of(Lost)
    assert (lost.request, "abort" in lost.reason) == ("lost", True)


async def test_a_crash_in_the_engine_tells_the_exception_as_root_cause(
    host: EngineHost, reader: Reader
) -> None:
    await host.ensure_started(1, {**FAST, "raise_on_prompt": "poison"}, 60)
    await host.submit(1, [order("r", prompt="some poison")])
    await until(lambda: reader.of(Terminated))
    (item,) = reader.of(Terminated)
    died = item.termination
    assert died.causes[-1] == Cause("RuntimeError", "the model cannot take 'poison'")
    assert died.exit_code == 1
    assert "raise_on_prompt" in died.traceback


async def test_a_wedged_engine_does_not_hold_the_stop_up(host: EngineHost) -> None:
    info = await host.ensure_started(1, FAST, 60)
    for process in info.processes:
        os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    await host.stop_engine(1, 0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert alive(info.processes) == []


async def test_a_host_says_which_process_it_is_and_how_a_start_goes(
    host: EngineHost, reader: Reader, tmp_path: Path
) -> None:
    assert (await host.describe()).process.pid == os.getpid()
    await host.ensure_started(1, FAST, 60)
    await until(lambda: len(reader.of(Phase)) == 3)
    assert [item.phase for item in reader.of(Phase)] == ["launching", "loading", "ready"]
    assert os.listdir(tmp_path) == [Path(host._log_file).name]  # noqa: PTH208 - no path to make


async def test_the_watch_never_returns(host: EngineHost) -> None:
    watch = asyncio.create_task(host.watch())
    await asyncio.wait([watch], timeout=0.05)
    assert not watch.done()
    watch.cancel()


async def test_logs_of_old_engines_are_not_kept_for_ever(host: EngineHost, tmp_path: Path) -> None:
    for incarnation in range(1, 6):
        await host.ensure_started(incarnation, FAST, 60)
    assert len(os.listdir(tmp_path)) == 3  # noqa: PTH208 - a list of names is counted


async def test_what_failed_under_another_host_of_the_same_name_is_not_taken_for_what_fails_now(
    host: EngineHost, reader: Reader, tmp_path: Path
) -> None:
    other = EngineHost("llm/1", 1, "sim", str(tmp_path))
    with pytest.raises(EngineStartFailedError, match="no weights"):
        await other.ensure_started(1, {"fail_start": "no weights"}, 60)
    info = await host.ensure_started(1, FAST, 60)
    os.kill(next(each.pid for each in info.processes if "Worker" in each.name), signal.SIGKILL)
    await until(lambda: reader.of(Terminated))
    (item,) = reader.of(Terminated)
    died = item.termination
    assert died.causes[-1].type == "ProcessKilled"
    assert died.log_file != other._log_file
