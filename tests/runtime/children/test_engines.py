"""Engine children: what hosts' answers, silences and streams mean for the incarnation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import anyio
import pytest

from rayvisor._core.protocol.links import CleanupReport, HostCallFailedError, HostGoneError, HostView
from rayvisor._core.protocol.wire import (
    Chunk,
    Condition,
    EngineInfo,
    GenerateCommand,
    HostDescription,
    HostItem,
    Phase,
    ProcessId,
    Terminated,
)
from rayvisor._runtime.children import engines
from rayvisor._runtime.children.actor_health import process_lost
from rayvisor._runtime.children.engines import EngineBackend, EngineIncarnation
from rayvisor._runtime.children.protocol import StartRefusedError
from rayvisor._runtime.children.slots import host_lost
from rayvisor.faults import Cause, FaultClass, Termination, classify
from rayvisor.specs import ActorOptions, ChildSpec, EngineStart, Shutdown, StallLimits
from rayvisor.specs.limits import PATIENT
from rayvisor.timeouts import RuntimeTimeouts

HOST = ProcessId(4711, 0, "", "host")
INFO = EngineInfo("sim", "1", 100, 8, (0,), (ProcessId(4712, 0, "", "core"),), 0.1)
SPEC = ChildSpec(id="1", start=EngineStart(engine="sim", arguments={"x": 1}), start_timeout=5.0)


KILLED = Termination(causes=(Cause("EngineDied", "it ended"), Cause("ProcessKilled", "by SIGKILL")), signal=9)


def died(incarnation: int) -> Terminated:
    return Terminated(incarnation, KILLED)


def chunk(request: str) -> Chunk:
    return Chunk(request, 1, (1,), "a")


class FakeHost:
    """A host that does what its test says."""

    def __init__(self, child: str, epoch: int) -> None:
        self.child = child
        self.epoch = epoch
        self.calls: list[str] = []
        self.answer: EngineInfo | Termination | Exception = INFO
        self.unready: Exception | None = None
        self.unstoppable: Exception | None = None
        self.ends: list[Termination] = []
        self.end_came = anyio.Event()
        self.streams: list[list[Any]] = []
        self.stream_came = anyio.Event()
        self.verified = True
        self.seen = HostView(())

    def gone(self, *, unavailable: bool = False) -> HostGoneError:
        end = Termination(causes=(Cause("ActorDiedError", "gone"),), unavailable=unavailable)
        return HostGoneError(self.child, self.epoch, end)

    async def ready(self, timeout: float) -> HostDescription:
        del timeout
        self.calls.append("ready")
        if self.unready is not None:
            raise self.unready
        return HostDescription(HOST, "")

    async def ensure_started(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        timeout: float,
        limits: StallLimits = PATIENT,
    ) -> EngineInfo | Termination:
        del timeout, limits
        self.calls.append(f"start {incarnation} {dict(arguments)}")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def stop_engine(self, incarnation: int, grace: float) -> None:
        self.calls.append(f"stop {incarnation} {grace:g}")
        if self.unstoppable is not None:
            raise self.unstoppable

    async def stream(self) -> AsyncIterator[list[HostItem]]:
        self.calls.append("stream")
        while not self.streams:
            self.stream_came = anyio.Event()
            await self.stream_came.wait()
        for step in self.streams.pop(0):
            if isinstance(step, Exception):
                raise step
            yield [step]

    def say(self, *steps: Any) -> None:
        """The items of one stream before it ends."""
        self.streams.append(list(steps))
        self.stream_came.set()

    async def submit(self, incarnation: int, orders: Sequence[GenerateCommand]) -> None:
        self.calls.append(f"submit {incarnation} {len(orders)}")

    async def abort(self, requests: Sequence[tuple[str, int]]) -> None:
        self.calls.append(f"abort {requests}")

    async def flow(self, request: str, attempt: int, *, is_open: bool) -> None:
        self.calls.append(f"flow {request} {attempt} {is_open}")

    def die(self, *, unavailable: bool = False) -> None:
        self.ends.append(self.gone(unavailable=unavailable).end)
        self.end_came.set()

    async def ended(self) -> Termination:
        while not self.ends:
            self.end_came = anyio.Event()
            await self.end_came.wait()
        return self.ends.pop(0)

    async def ask(self, incarnation: int, method: str, args: Any, kwargs: Any, timeout: float) -> Any:
        return incarnation, method, args, kwargs, timeout

    async def view(self, timeout: float) -> HostView:
        del timeout
        return self.seen

    async def end(self, timeout: float) -> CleanupReport:
        del timeout
        self.calls.append("end")
        return CleanupReport((), (), verified=self.verified)


class FakePlace:
    def __init__(self) -> None:
        self.hosts: list[FakeHost] = []
        self.prepare: Callable[[FakeHost], object] = lambda _: None
        self.options: list[ActorOptions] = []

    async def create(self, *, child: str, epoch: int, engine: str, options: ActorOptions) -> FakeHost:
        assert engine in {"sim", "vllm"}
        self.options.append(options)
        self.hosts.append(FakeHost(child, epoch))
        self.prepare(self.hosts[-1])
        return self.hosts[-1]

    async def end_child(self, child: str, timeout: float) -> CleanupReport:
        del child, timeout
        return CleanupReport((), (), verified=True)

    async def close(self, timeout: float = 30.0) -> None:
        del timeout


class Stage:
    """A backend with its reports."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.place = FakePlace()
        self.told: list[tuple[Any, ...]] = []
        self.backend = EngineBackend(
            self._open,
            tasks,
            self,
            lambda arguments: float(arguments["x"]),
            timeouts=RuntimeTimeouts(outcome=0.01, stream_reopen=0.001),
        )

    async def _open(self) -> FakePlace:
        return self.place

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        self.told.append(("items", child, incarnation, *items))

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        self.told.append(("missing", child, incarnation, reason))

    def phase(self, child: str, phase: Phase) -> None:
        self.told.append(("phase", child, phase.phase))

    def condition(self, child: str, incarnation: int, event: str, causes: tuple[Cause, ...] = ()) -> None:
        del causes
        self.told.append((event, child, incarnation))

    def unhealthy(self, child: str, condition: Condition, *, again: bool) -> None:
        self.told.append(("unhealthy again" if again else "unhealthy", child, condition.incarnation))

    @property
    def host(self) -> FakeHost:
        return self.place.hosts[-1]

    async def create_incarnation(self, incarnation: int, spec: ChildSpec = SPEC) -> EngineIncarnation:
        carrier = self.backend.create_incarnation("llm/1", incarnation, spec, None)
        await carrier.start()
        return carrier

    async def until_told(self, *expected: object) -> None:
        with anyio.fail_after(60):
            while expected not in self.told:  # noqa: ASYNC110 - any report at all
                await anyio.sleep(0.001)


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    async with anyio.create_task_group() as tasks:
        stage = Stage(tasks)
        await stage.backend.open()
        yield stage
        tasks.cancel_scope.cancel()


async def test_an_engine_that_died_alone_is_followed_in_the_same_host() -> None:
    async with staged() as stage:
        first = await stage.create_incarnation(1)
        assert stage.backend.info("llm/1", 1) == INFO
        assert stage.backend.processes("llm/1") == [("host", HOST), ("engine", INFO.processes[0])]
        stage.host.say(died(1))
        with anyio.fail_after(60):
            ending = await first.ended()
        assert str(ending.root) == "ProcessKilled: by SIGKILL"
        assert ending.signal == 9
        assert await first.clean()
        await stage.create_incarnation(2)
        assert len(stage.place.hosts) == 1
        assert [x for x in stage.host.calls if x != "stream"] == [
            "ready",
            "start 1 {'x': 1}",
            "stop 1 0",
            "start 2 {'x': 1}",
        ]


async def test_a_host_that_cannot_prove_its_engine_gone_is_ended_and_another_takes_its_place() -> None:
    async with staged() as stage:
        first = await stage.create_incarnation(1)
        old = stage.host
        old.say(died(1))
        await first.ended()
        old.unstoppable = HostCallFailedError("stop_engine", (Cause("EngineError", "outlived SIGKILL"),), "")
        old.verified = False
        assert not await first.clean()
        await stage.create_incarnation(2)
        assert stage.host is not old
        assert stage.host.epoch > old.epoch
        assert old.calls[-1] == "end"


async def test_a_host_that_died_is_ended_with_its_processes_before_the_next_one_is_made() -> None:
    async with staged() as stage:
        first = await stage.create_incarnation(1)
        old = stage.host
        old.unstoppable = old.gone()
        old.die()
        with anyio.fail_after(60):
            ending = await first.ended()
        assert ending.source == "ray"
        assert not ending.intended
        assert await first.clean()
        assert old.calls[-2:] == ["stop 1 0", "end"]
        await stage.create_incarnation(2)
        assert stage.host is not old


async def test_a_host_that_never_answered_is_ended_at_once() -> None:
    def unready(host: FakeHost) -> None:
        host.unready = TimeoutError("no node has slot=99")

    async with staged() as stage:
        stage.place.prepare = unready
        carrier = stage.backend.create_incarnation("llm/1", 1, SPEC, None)
        with pytest.raises(StartRefusedError) as refused:
            await carrier.start()
        assert refused.value.termination.overdue
        assert str(refused.value.termination.root) == "StartTimeout: no node has slot=99"
        assert await carrier.clean()
        assert stage.host.calls == ["ready", "end"]
        stage.place.prepare = lambda _: None
        await stage.create_incarnation(2)
        assert len(stage.place.hosts) == 2


@pytest.mark.parametrize(
    ("answer", "root"),
    [
        (KILLED, "ProcessKilled: by SIGKILL"),
        (
            HostCallFailedError("x", (Cause("ValueError", "no such model"),), "trace"),
            "ValueError: no such model",
        ),
    ],
    ids=["died", "raised"],
)
async def test_a_start_that_fails_in_its_host_says_why(answer: Termination | Exception, root: str) -> None:
    async with staged() as stage:
        stage.place.prepare = lambda host: setattr(host, "answer", answer)
        with pytest.raises(StartRefusedError) as refused:
            await stage.create_incarnation(1)
        assert str(refused.value.termination.root) == root


@pytest.mark.parametrize("name", [field.name for field in fields(Termination)])
async def test_every_fact_of_a_termination_arrives_from_its_host(name: str) -> None:
    """From a failed start and from the stream; only who says so is added."""
    facts: dict[str, Any] = {
        "causes": KILLED.causes, "traceback": "Traceback", "exit_code": 3, "signal": 9, "node": "10.0.0.7",
        "log_file": "engine.log", "phase": "loading", "source": "engine",
    }  # fmt: skip
    sent = Termination(**{"causes": (), name: facts.get(name, True)})
    async with staged() as stage:
        engine = await stage.create_incarnation(1)
        stage.host.say(Terminated(1, sent))
        with anyio.fail_after(60):
            assert await engine.ended() == replace(sent, source="engine")
        stage.host.answer = sent
        with pytest.raises(StartRefusedError) as refused:
            await stage.create_incarnation(2)
        assert refused.value.termination == replace(sent, source="engine")


@pytest.mark.parametrize("served", [True, False])
async def test_what_an_engine_knows_to_be_permanent_stays_so(*, served: bool) -> None:
    wrong = Termination(
        causes=(Cause("OutOfMemoryError", ""), Cause("ValueError", "no model")), permanent=True
    )
    async with staged() as stage:
        engine = await stage.create_incarnation(1)
        stage.host.say(Terminated(1, wrong))
        with anyio.fail_after(60):
            ended = await engine.ended()
        assert classify(ended, starting=False, served=served) is FaultClass.PERMANENT
        stage.host.answer = wrong
        with pytest.raises(StartRefusedError) as refused:
            await stage.create_incarnation(2)
        assert classify(refused.value.termination, starting=True, served=served) is FaultClass.PERMANENT


@pytest.mark.parametrize("init_failed", [True, False])
async def test_a_host_that_has_ended_is_lost_unless_its_construction_raised(*, init_failed: bool) -> None:
    end = Termination(
        causes=KILLED.causes, intended=True, unavailable=True, init_failed=init_failed, node="n"
    )
    expected = replace(end, source="ray", intended=False, unavailable=False, lost=not init_failed)
    assert host_lost(end) == expected
    assert process_lost(end, "starting") == replace(expected, intended=True, phase="starting")


async def test_a_host_that_is_unavailable_is_suspect_and_clear_again_when_it_answers() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        stage.host.die(unavailable=True)
        await stage.until_told("suspect", "llm/1", 1)
        await stage.until_told("clear", "llm/1", 1)
        stage.host.say(chunk("r"))
        await stage.until_told("items", "llm/1", 1, chunk("r"))
        with anyio.move_on_after(0.05) as scope:
            await carrier.ended()
        assert scope.cancelled_caught


async def test_a_host_that_stays_unavailable_counts_as_lost_after_some_tries() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        stage.host.unready = stage.host.gone(unavailable=True)
        for _ in range(engines.UNAVAILABLE_TRIES + 1):
            stage.host.die(unavailable=True)
        with anyio.fail_after(60):
            ending = await carrier.ended()
        assert ending.lost
        assert not ending.unavailable
        assert stage.host.calls.count("ready") == 1 + engines.UNAVAILABLE_TRIES
        assert stage.told.count(("suspect", "llm/1", 1)) == 1


async def test_a_stream_that_breaks_is_opened_anew_and_what_may_be_lost_is_told() -> None:
    async with staged() as stage:
        await stage.create_incarnation(1)
        stage.host.say(chunk("a"), stage.host.gone(unavailable=True))
        stage.host.say(chunk("b"))
        await stage.until_told("items", "llm/1", 1, chunk("b"))
        kinds = [told[0] for told in stage.told]
        assert kinds[:3] == ["items", "missing", "items"]


async def test_a_stream_that_brings_something_each_time_may_break_as_often_as_it_likes() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        for number in range(3 * engines.STREAM_TRIES):
            stage.host.say(chunk(str(number)), ConnectionResetError("reset"))
        await stage.until_told("items", "llm/1", 1, chunk(str(3 * engines.STREAM_TRIES - 1)))
        with anyio.move_on_after(0.02) as scope:
            await carrier.ended()
        assert scope.cancelled_caught


async def test_a_host_that_answers_in_between_may_be_unavailable_as_often_as_it_likes() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        for number in range(1, 2 * engines.UNAVAILABLE_TRIES):
            stage.host.die(unavailable=True)
            with anyio.fail_after(60):
                while stage.told.count(("clear", "llm/1", 1)) < number:  # noqa: ASYNC110 - reports
                    await anyio.sleep(0.001)
        with anyio.move_on_after(0.02) as scope:
            await carrier.ended()
        assert scope.cancelled_caught


async def test_a_stream_that_keeps_breaking_ends_the_incarnation() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        for _ in range(engines.STREAM_TRIES):
            stage.host.say(ConnectionResetError("reset"))
        with anyio.fail_after(60):
            ending = await carrier.ended()
        assert str(ending.root) == "StreamBroken: ConnectionResetError: reset"


async def test_words_of_an_older_incarnation_change_nothing() -> None:
    async with staged() as stage:
        await stage.create_incarnation(1)
        carrier = await stage.create_incarnation(2)
        stage.host.say(died(1), Phase(1, "late", "", 0.0), Phase(2, "loading", "", 0.0))
        await stage.until_told("phase", "llm/1", "loading")
        assert ("phase", "llm/1", "late") not in stage.told
        with anyio.move_on_after(0.02) as scope:
            await carrier.ended()
        assert scope.cancelled_caught


async def test_stopping_asks_with_the_shutdown_time_and_then_ends_the_host() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        assert await carrier.stop(Shutdown(7.0), "shutdown")
        assert stage.host.calls[-2:] == ["stop 1 7", "end"]


async def test_a_brutal_kill_ends_the_host_at_once() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        assert await carrier.stop(Shutdown.BRUTAL_KILL, "killed")
        assert stage.host.calls[-1] == "end"
        assert not any(call.startswith("stop") for call in stage.host.calls)


async def test_the_end_of_an_older_incarnation_never_touches_the_newer_one_in_its_host() -> None:
    async with staged() as stage:
        first = await stage.create_incarnation(1)
        await stage.create_incarnation(2)
        assert await first.stop(Shutdown.BRUTAL_KILL, "late")
        assert stage.host.calls[-1] == "stop 1 0"
        assert "end" not in stage.host.calls


async def test_orders_for_an_incarnation_that_has_ended_are_refused() -> None:
    async with staged() as stage:
        carrier = await stage.create_incarnation(1)
        await stage.backend.submit("llm/1", 1, [GenerateCommand("r", 1, "p", {})])
        await stage.backend.flow("llm/1", 1, "r", 1, is_open=False)
        await stage.backend.abort("llm/1", 1, [("r", 1)])
        assert stage.host.calls[-3:] == ["submit 1 1", "flow r 1 False", "abort [('r', 1)]"]
        stage.host.say(died(1))
        await carrier.ended()
        for child, incarnation in (("llm/1", 1), ("llm/1", 2), ("llm/9", 1)):
            with pytest.raises(HostGoneError):
                await stage.backend.submit(child, incarnation, [])


async def test_gpus_are_derived_for_vllm_unless_its_child_says_how_many() -> None:
    async with staged() as stage:
        for number, (kind, gpus) in enumerate([("sim", None), ("vllm", None), ("vllm", 0.5)], start=1):
            start = EngineStart(engine=kind, arguments={"x": 4}, options=ActorOptions(num_gpus=gpus))
            carrier = stage.backend.create_incarnation(
                f"llm/{number}", 1, ChildSpec(id="1", start=start), None
            )
            await carrier.start()
        assert [options.num_gpus for options in stage.place.options] == [None, 4.0, 0.5]
