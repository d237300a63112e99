"""Instructions to engines: what is sent, what counts as an acknowledgement, and when a rank is told again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from rayvisor._core.protocol.links import HostCallFailedError, HostGoneError, HostLink
from rayvisor._core.protocol.wire import EngineInfo
from rayvisor._runtime.children.group_health import GroupHealth
from rayvisor._runtime.children.protocol import RecoveryFailedError
from rayvisor._runtime.children.recovery import await_instruction, recover, recovery_seconds
from rayvisor._runtime.children.slots import EngineSlot
from rayvisor.faults import Cause, Termination

INFO = EngineInfo("vllm", "1", 100, 8, (0,), (), 0.1, instructions=("retry",), recovery_timeout=60.0)


class Engine:
    """A host's link, with an engine behind it that answers by a script."""

    def __init__(self, status: str = "unhealthy", **answer: Any) -> None:
        self.status = status
        self.then = "healthy"
        self.answer: dict[str, Any] = {"success": True, "reason": None, **answer}
        self.broken: Exception | None = None
        self.told: list[Mapping[str, Any]] = []

    async def ask(
        self, incarnation: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float
    ) -> Any:
        del incarnation, kwargs, timeout
        await anyio.lowlevel.checkpoint()
        if method == "get_status":
            return {"engines": [{"id": 0, "status": "healthy"}, {"id": 1, "status": self.status}]}
        if self.broken is not None:
            raise self.broken
        self.told.append(args[0])
        if self.status != "unhealthy":
            return {"request_id": args[0]["request_id"], "success": False, "reason": "status is HEALTHY"}
        if self.answer["success"]:
            self.status = self.then
        return {"request_id": args[0]["request_id"], **self.answer}


def slot(engine: Engine, info: EngineInfo | None = INFO) -> EngineSlot:
    made = EngineSlot("llm/1", GroupHealth())
    made.incarnation, made.info, made.link = 1, info, cast("HostLink", engine)
    made.unhealthy = engine.status == "unhealthy"
    return made


async def retry(engine: Engine, *, timeout: float = 5.0, info: EngineInfo | None = INFO) -> None:
    await recover(slot(engine, info), 1, "retry", timeout)


async def test_each_instruction_has_a_request_id_of_its_own() -> None:
    engines = Engine(), Engine()
    for engine in engines:
        await retry(engine)
    (first,), (second,) = (engine.told for engine in engines)
    assert (first["instruction"], first["params"]) == ("retry", {})
    assert first["request_id"] != second["request_id"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"request_id": "another"}, "is of another request"),
        ({"success": False, "reason": "the collective failed"}, "it refused 'retry': the collective failed"),
        ({"success": False}, "it refused 'retry': no reason given"),
    ],
)
async def test_what_is_no_acknowledgement_is_a_failure(answer: dict[str, Any], why: str) -> None:
    with pytest.raises(RecoveryFailedError, match=why):
        await retry(Engine(**answer))


@pytest.mark.parametrize("status", ["unhealthy", "dead"])
async def test_an_acknowledgement_alone_does_not_make_an_engine_well(status: str) -> None:
    engine = Engine()
    engine.then = status
    with pytest.raises(RecoveryFailedError, match=f"acknowledged, but the engine is {status}"):
        await retry(engine)


async def test_an_engine_without_the_instruction_is_never_sent_it() -> None:
    engine = Engine()
    with pytest.raises(RecoveryFailedError, match="does not know the instruction 'retry'; it knows none"):
        await retry(engine, info=INFO._replace(instructions=()))
    with pytest.raises(RecoveryFailedError, match="has ended"):
        await retry(engine, info=None)
    assert engine.told == []


@pytest.mark.parametrize(
    "broken",
    [
        HostCallFailedError("ask", (Cause("EngineDeadError", "gone"),), ""),
        HostGoneError("llm/1", 1, Termination(causes=(Cause("ActorDied", "gone"),))),
    ],
)
async def test_an_engine_that_goes_away_meanwhile_has_not_recovered(broken: Exception) -> None:
    engine = Engine()
    engine.broken = broken
    with pytest.raises(RecoveryFailedError, match="gone"):
        await retry(engine)


async def test_a_healthy_rank_waits_for_the_others_and_is_told_again_if_it_turns_unhealthy() -> None:
    engine = Engine("healthy")
    its_seat = slot(engine)
    its_seat.group.set("llm/2", unhealthy=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recover, its_seat, 1, "retry", 30.0)
        while not engine.told:  # noqa: ASYNC110 - any condition
            await anyio.sleep(0.001)
        engine.status, its_seat.unhealthy = "unhealthy", True
    assert len(engine.told) == 2
    assert engine.status == "healthy"


async def test_a_healthy_rank_is_done_when_the_others_are_well() -> None:
    engine = Engine("healthy")
    await retry(engine)
    assert len(engine.told) == 1


async def test_a_healthy_rank_is_done_as_soon_as_the_last_of_the_others_is_well() -> None:
    engine = Engine("healthy")
    rank = slot(engine)
    for other in ("llm/2", "llm/3"):
        rank.group.set(other, unhealthy=True)
    over = anyio.Event()

    async def run() -> None:
        await recover(rank, 1, "retry", 30.0)
        over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        rank.group.set("llm/2", unhealthy=False)
        await anyio.wait_all_tasks_blocked()
        assert not over.is_set()
        rank.group.set("llm/3", unhealthy=False)
        with anyio.fail_after(5):
            await over.wait()
    assert len(engine.told) == 1


async def test_an_operator_is_awaited_until_the_whole_group_is_well() -> None:
    rank = slot(Engine())
    rank.group.set("llm/2", unhealthy=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(await_instruction, rank, 1, 30.0)
        await anyio.wait_all_tasks_blocked()
        rank.unhealthy = False
        await anyio.wait_all_tasks_blocked()
        rank.group.set("llm/2", unhealthy=False)
    rank.group.set("llm/2", unhealthy=True)
    with pytest.raises(RecoveryFailedError, match="another of its group has not recovered within"):
        await await_instruction(rank, 1, 0.05)


def test_a_recovery_ends_before_the_engine_loses_its_patience() -> None:
    assert recovery_seconds(10.0, INFO) == pytest.approx(9.0)
    assert recovery_seconds(10.0, INFO._replace(recovery_timeout=5.0)) == pytest.approx(4.0)
    assert recovery_seconds(10.0, INFO._replace(recovery_timeout=0.0)) == pytest.approx(9.0)
