"""The fault status that an engine with fault tolerance reports; an engine without it gets no instruction."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rayvisor._backends.host.engine import EngineError, EngineStatus
from rayvisor._core.protocol.wire import Condition, Lost, Terminated
from rayvisor.faults import Cause
from tests.backends.driving import Served, alive, order
from tests.backends.host.test_hangs import Hosted
from tests.waiting import until

RETRY = {"instruction": "retry", "params": {}, "request_id": "a"}


@pytest.mark.asyncio(loop_scope="session")
async def test_an_engine_without_fault_tolerance_knows_no_instruction_and_is_sent_none(
    served: Served,
) -> None:
    assert served.info is not None
    assert (served.info.instructions, served.info.recovery_timeout) == ((), 0.0)
    assert (await served.live.ask("get_status", (), {}))["engines"] == []
    assert await served.live.status() == EngineStatus("healthy")
    with pytest.raises(EngineError, match="no fault tolerance"):
        await served.live.ask("handle_fault", (RETRY,), {})
    assert (await served.run(order("A", max_tokens=4))).finish == "length"


@pytest_asyncio.fixture
async def hosted(tmp_path: Path) -> AsyncIterator[Hosted]:
    made = Hosted(tmp_path)
    yield made
    made.reading.cancel()
    await asyncio.wait([made.reading])
    await made.host.stop_engine(made.host._incarnation, 0.0)


async def ask(hosted: Hosted, method: str, *args: Any) -> Any:
    return await hosted.host.ask(1, method, args, {}, 30.0)


async def test_a_failed_step_is_told_with_its_exception_again_and_again_until_an_instruction_helps(
    hosted: Hosted,
) -> None:
    info = await hosted.start(fault_tolerance=True, recovery_timeout=60.0)
    assert (info.instructions, info.recovery_timeout) == (("retry",), 60.0)
    await hosted.submit()
    await until(hosted.streaming)
    refused = await ask(hosted, "handle_fault", RETRY)
    assert (refused["request_id"], refused["success"]) == ("a", False)
    hosted.signal("EngineCore", signal.SIGUSR1)
    await until(lambda: len(hosted.of(Condition)) >= 2)  # and a reminder
    told = hosted.of(Condition)[0]
    assert (told.incarnation, told.status) == (1, "unhealthy")
    assert told.evidence.causes[0] == Cause(
        "EngineUnhealthy", "the engine waits for an instruction: RuntimeError"
    )
    assert told.evidence.root == Cause("RuntimeError", "a step was asked to fail")
    assert 'raise RuntimeError("a step was asked to fail")' in told.evidence.traceback
    assert len(hosted.of(Lost)) == 3
    (engine,) = (await ask(hosted, "get_status"))["engines"]
    assert (engine["status"], engine["fault_info"]) == ("unhealthy", "RuntimeError")
    # What comes meanwhile waits in the engine, and is done when it is well.
    await hosted.submit(max_tokens=5, incarnation=1)
    assert (await ask(hosted, "handle_fault", RETRY))["success"]
    await until(lambda: hosted.of(Condition)[-1] == Condition(1, "healthy"))
    await until(lambda: hosted.finished() == 3)
    assert not hosted.of(Terminated)


async def test_an_engine_that_says_it_is_dead_has_died_though_its_processes_run(hosted: Hosted) -> None:
    info = await hosted.start(fault_tolerance=True)
    hosted.signal("EngineCore", signal.SIGUSR2)
    died = await hosted.death()
    assert died.causes[0] == Cause("EngineDead", "the engine says that it is dead: RuntimeError")
    assert died.causes[-1] == Cause("RuntimeError", "declared dead by a signal")
    await until(lambda: not alive(info.processes))


async def test_an_engine_that_nobody_tells_anything_dies_when_its_patience_is_over(hosted: Hosted) -> None:
    await hosted.start(fault_tolerance=True, recovery_timeout=0.3)
    await hosted.submit()
    await until(hosted.streaming)
    hosted.signal("EngineCore", signal.SIGUSR1)
    died = await hosted.death()
    assert died.causes[-1] == Cause("RuntimeError", "a step was asked to fail")


async def test_an_instruction_that_is_never_answered_does_not_outlive_its_deadline_or_its_engine(
    hosted: Hosted,
) -> None:
    await hosted.start(fault_tolerance=True, retry="ignore")
    await hosted.submit()
    await until(hosted.streaming)
    hosted.signal("EngineCore", signal.SIGUSR1)
    await until(lambda: hosted.of(Condition))
    with pytest.raises(TimeoutError):
        await hosted.host.ask(1, "handle_fault", (RETRY,), {}, 0.2)
    waiting = asyncio.create_task(ask(hosted, "handle_fault", RETRY))
    await asyncio.sleep(0)
    hosted.signal("EngineCore", signal.SIGKILL)
    with pytest.raises(EngineError):
        await waiting
