"""The contract of an engine with its host: starting, dying, ending, on the simulated and the real one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayvisor._backends.host.engine import Engine, EngineGoneError, EngineStartFailedError
from rayvisor.faults import Cause, Termination
from tests.backends.driving import REAL, Result, Served, alive, order
from tests.waiting import until, until_now

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Both kinds share the code that this is about, and a real engine takes half a minute to start.
ONLY_SIMULATED = pytest.mark.parametrize("kind", ["sim"], indirect=True)

MakeEngine = Callable[[dict[str, Any]], Engine]

# A machine that is busy with other things is slow: the bound is about minutes against seconds.
SOON = 20.0


@pytest.fixture(autouse=True)
def _what_a_failed_start_leaves_behind_is_collected_where_its_warnings_are_no_errors(
    kind: str,
) -> Iterator[None]:
    yield
    if kind == "vllm":
        gc.collect()


def _ignore(phase: str, detail: str) -> None:
    del phase, detail


def _broken(model: Path, broken: Path) -> str:
    """Copy a model, its weights spoilt."""
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    return str(broken)


def _files_in(folder: Path) -> list[Path] | None:
    return list(folder.iterdir()) if folder.exists() else None


async def _kill_in_mid_stream(served: Served, name: str) -> tuple[Termination, float]:
    """Kill a process of the engine while it works; give what it says and how long that took."""
    died = asyncio.create_task(served.live.died())
    results = [Result() for _ in range(3)]
    params: dict[str, Any] = {"max_tokens": 240, "ignore_eos": True}
    tasks = [asyncio.create_task(served.run(order("A", **params), result)) for result in results]
    await until(lambda: all(result.chunks for result in results))
    process = served.process(name)
    os.kill(process.pid, signal.SIGKILL)
    began = time.monotonic()
    said = await asyncio.wait_for(died, SOON)
    took = time.monotonic() - began
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
    assert [type(end) for end in ends] == [EngineGoneError] * 3
    assert f"(pid {process.pid})" in said.causes[-1].message
    with pytest.raises(EngineGoneError):
        await served.run(order("A"))
    return said, took


@ONLY_SIMULATED  # the demo's test kills a real engine's worker, and tests/real its core
@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_a_killed_process_is_the_root_cause_and_all_streams_end(served: Served, name: str) -> None:
    engine, processes = served.live, served.live.processes()
    said, took = await _kill_in_mid_stream(served, name)
    assert said.root == Cause(
        "ProcessKilled",
        f"{name} (pid {served.process(name).pid}) was ended by SIGKILL",
    )
    assert (said.signal, said.exit_code, said.phase) == (signal.SIGKILL, None, "serving")
    assert not said.permanent
    assert took < SOON
    await served.end()
    assert alive(processes) == []
    with pytest.raises(EngineGoneError):
        await anext(engine.generate(order("A")))


@pytest.mark.parametrize("kind", [REAL], indirect=True)
async def test_a_real_engine_is_a_fork_with_a_folder_for_its_sockets_that_goes_with_it(
    served: Served,
) -> None:
    template = psutil.Process(served.process("EngineCore").pid).parent()
    assert template is not None
    assert template.ppid() == os.getpid()
    assert template.pid not in [process.pid for process in served.live.processes()]
    sockets = Path(os.environ["VLLM_RPC_BASE_PATH"])
    assert _files_in(sockets)
    await served.end()
    assert _files_in(sockets) is None
    assert template.is_running()
    await served.begin()
    assert psutil.Process(served.process("EngineCore").pid).parent() == template


async def test_a_stopped_worker_does_not_hold_the_end_up(served: Served) -> None:
    result = Result()
    task = asyncio.create_task(served.run(order("A", max_tokens=240, ignore_eos=True), result))
    await until(lambda: result.chunks)
    processes = served.live.processes()
    os.kill(served.process("Worker").pid, signal.SIGSTOP)
    began = time.monotonic()
    await served.end(1.0)
    assert time.monotonic() - began < 1.0 + SOON
    assert alive(processes) == []
    with pytest.raises(EngineGoneError):
        await task


@ONLY_SIMULATED
async def test_an_end_that_was_asked_for_is_no_death(served: Served) -> None:
    died = asyncio.create_task(served.live.died())
    processes = served.live.processes()
    await asyncio.gather(served.live.stop(10.0), served.live.stop(10.0))
    await served.end(10.0)
    assert alive(processes) == []
    await asyncio.wait([died], timeout=0.2)
    assert not died.done()
    died.cancel()


@ONLY_SIMULATED
async def test_a_second_more_urgent_end_overtakes_the_first(served: Served) -> None:
    os.kill(served.process("Worker").pid, signal.SIGSTOP)
    os.kill(served.process("EngineCore").pid, signal.SIGSTOP)
    patient = asyncio.create_task(served.live.stop(60.0))
    await asyncio.sleep(0)
    began = time.monotonic()
    await served.end(0.1)
    await patient
    assert time.monotonic() - began < 2 * SOON


async def test_an_unknown_argument_is_named_and_no_start_can_cure_it(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    with pytest.raises(EngineStartFailedError, match="tensor_paralel") as failed:
        await make_engine({**arguments, "tensor_paralel": 2}).start(_ignore)
    assert failed.value.termination.causes[-1].type == "TypeError"
    assert failed.value.termination.permanent


async def test_a_wrong_value_is_named_and_no_start_can_cure_it(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    with pytest.raises(EngineStartFailedError, match="max_model_len") as failed:
        await make_engine({**arguments, "max_model_len": -5}).start(_ignore)
    assert failed.value.termination.permanent


async def test_a_model_that_is_not_there_is_found_out_at_once(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine, tmp_path: Path
) -> None:
    await keeper.end()
    began = time.monotonic()
    missing = str(tmp_path / "no-model")
    with pytest.raises(EngineStartFailedError, match="model") as failed:
        await make_engine({**arguments, "model": missing}).start(_ignore)
    assert missing in failed.value.termination.causes[-1].message
    assert failed.value.termination.permanent
    assert time.monotonic() - began < SOON


async def test_a_start_that_is_stopped_leaves_no_process(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    slow = {"start_delay": 30.0} if keeper.kind == "sim" else {}
    engine = make_engine({**arguments, **slow})
    starting = asyncio.create_task(engine.start(_ignore))
    await until(lambda: engine.processes() or starting.done(), 120)
    processes = engine.processes()
    assert processes
    await asyncio.wait_for(engine.stop(0.0), 2 * SOON)
    with pytest.raises(EngineStartFailedError, match="stopped"):
        await asyncio.wait_for(starting, SOON)
    assert alive((*processes, *engine.processes())) == []


@ONLY_SIMULATED
async def test_a_start_that_is_cancelled_leaves_no_process(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    slow = {"start_delay": 30.0} if keeper.kind == "sim" else {}
    engine = make_engine({**arguments, **slow})
    starting = asyncio.create_task(engine.start(_ignore))
    await until(lambda: any("::" in process.name for process in engine.processes()), 120)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, 2 * SOON)
    assert engine.processes()
    assert alive(engine.processes()) == []


async def test_an_engine_that_was_stopped_never_starts(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    engine = make_engine(arguments)
    await engine.stop(0.0)
    with pytest.raises(EngineStartFailedError, match="stopped"):
        await engine.start(_ignore)
    assert engine.processes() == ()


async def test_a_process_killed_while_starting_fails_the_start_with_it_as_root_cause(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    slow = {"start_delay": 30.0} if keeper.kind == "sim" else {}
    engine = make_engine({**arguments, **slow})
    starting = asyncio.create_task(engine.start(_ignore))
    await until(lambda: any("EngineCore" in process.name for process in engine.processes()), 120)
    os.kill(next(each.pid for each in engine.processes() if "EngineCore" in each.name), signal.SIGKILL)
    with pytest.raises(EngineStartFailedError, match=r"EngineCore .*was ended by SIGKILL") as failed:
        await asyncio.wait_for(starting, 2 * SOON)
    assert failed.value.termination.signal == signal.SIGKILL
    assert failed.value.termination.phase == "starting"
    assert alive(engine.processes()) == []


@ONLY_SIMULATED
async def test_a_process_killed_at_its_birth_is_the_root_cause(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine
) -> None:
    await keeper.end()
    engine = make_engine(arguments)
    before = set(psutil.Process().children())

    def kill_the_first() -> None:
        until_now(lambda: set(psutil.Process().children()) - before, interval=0.0)
        for born in set(psutil.Process().children()) - before:
            born.kill()  # it may not even have a name

    killing = asyncio.create_task(asyncio.to_thread(kill_the_first))
    starting = asyncio.create_task(engine.start(_ignore))
    await killing
    with pytest.raises(EngineStartFailedError, match=r"EngineCore .*was ended by SIGKILL") as failed:
        await asyncio.wait_for(starting, SOON)
    assert failed.value.termination.signal == signal.SIGKILL
    assert alive(engine.processes()) == []


async def test_what_fails_in_a_child_process_is_the_root_cause_of_the_start(
    keeper: Served, arguments: dict[str, Any], make_engine: MakeEngine, tmp_path: Path
) -> None:
    await keeper.end()
    if keeper.kind == "sim":
        arguments = {**arguments, "fail_start": "the weights are broken"}
        expected = ("RuntimeError", "the weights are broken")
    else:
        arguments = {**arguments, "model": _broken(Path(arguments["model"]), tmp_path / "broken-model")}
        expected = ("SafetensorError", "Error while deserializing header")
    engine = make_engine(arguments)
    with pytest.raises(EngineStartFailedError) as failed:
        await asyncio.wait_for(engine.start(_ignore), 120)
    root = failed.value.termination.root
    name, message = root.type, root.message
    assert name == expected[0]
    assert message.startswith(expected[1])
    assert "Traceback" in failed.value.termination.traceback
    assert alive(engine.processes()) == []
    with contextlib.suppress(EngineStartFailedError):
        await engine.stop(0.0)
