"""Gates and warm spares in a running tree, with simulated engines."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor.testing import wait_for_state

GREEDY = {"max_tokens": 120, "temperature": 0.0}
SERVING = "ALIVE.SERVING"


def local(**options: Any) -> rv.Supervisor:
    options = {
        "engine": "sim",
        "engine_args": {"tokens_per_second": 200.0},
        "start_timeout": 120.0,
        **options,
    }
    return rv.Supervisor(rv.SupervisorSpec(children=[rv.engine_pool("llm", **options)]), local=True, seed=7)


def kill(sup: rv.Supervisor, child: str) -> None:
    pid = next(p.pid for role, p in sup.processes(child) if role == "engine" and "EngineCore" in p.name)
    os.kill(pid, signal.SIGKILL)


class Weights:
    """The wanted weight version; the hook brings engines up to it."""

    def __init__(self) -> None:
        self.wanted = 1
        self.seen: list[tuple[str, int, str]] = []
        self.broken = 0
        self.error: BaseException = ConnectionError("the weights cannot be had")
        self.predecessors: dict[tuple[str, int], str] = {}

    async def sync(self, gate: rv.Gate) -> None:
        if self.broken:
            self.broken -= 1
            raise self.error
        await gate.call("update_weights", self.wanted)
        self.predecessors[gate.child, gate.incarnation] = str(gate.predecessor)
        self.seen.append(
            (gate.child, gate.incarnation, await gate.options(timeout=5.0).call("get_weight_version"))
        )


async def test_every_incarnation_passes_its_gate_before_it_serves_and_again_when_declared_stale() -> None:
    weights = Weights()
    async with local(gate=weights.sync, standby=1) as sup:
        watch = sup.watch()
        await wait_for_state(sup, "llm/1", SERVING, timeout=60)
        await wait_for_state(sup, "llm/2", "ALIVE.STANDBY", timeout=60)
        weights.wanted = 2
        await sup.mark_stale("llm")
        await wait_for_state(sup, "llm/1", SERVING, timeout=60)
        await wait_for_state(sup, "llm/2", "ALIVE.STANDBY", timeout=60)
        assert {(child, version) for child, _, version in weights.seen} == {
            (child, version) for child in ("llm/1", "llm/2") for version in ("1", "2")
        }
        kill(sup, "llm/1")
        await wait_for_state(sup, "llm/1", "ALIVE.STANDBY", incarnation=2, timeout=60)
        assert ("llm/1", 2, "2") in weights.seen
        assert weights.predecessors["llm/1", 1] == "None"
        assert "was ended by SIGKILL" in weights.predecessors["llm/1", 2]
    moves = [x async for x in watch if isinstance(x, r.StateChanged) and x.child == "llm/1"]
    assert [x.after for x in moves if x.event in {"started", "synced", "stale"}].count("PAUSED.STALE") >= 2


class PanicException(BaseException):
    """Stands in for the exception that PyO3 raises when Rust code panics."""


@pytest.mark.parametrize(
    ("error", "root"),
    [
        (ConnectionError("the weights cannot be had"), "ConnectionError: the weights cannot be had"),
        (PanicException("rust"), "PanicException: rust"),
        (asyncio.CancelledError("a lost peer"), "CancelledError: a lost peer"),
    ],
)
async def test_a_gate_that_fails_is_tried_again_and_one_that_stays_shut_ends_the_incarnation(
    error: BaseException, root: str
) -> None:
    weights = Weights()
    weights.error = error
    weights.broken = 2
    async with local(gate=weights.sync) as sup:
        watch = sup.watch()
        await wait_for_state(sup, "llm/1", SERVING, timeout=60)
        weights.broken = 3
        await sup.mark_stale("llm/1")
        await wait_for_state(sup, "llm/1", SERVING, incarnation=2, timeout=60)
    (fault,) = [x.fault async for x in watch if isinstance(x, r.FaultSeen)]
    assert str(fault.root) == root
    assert fault.phase == "passing its gate"
    assert fault.fault_class is rv.FaultClass.FATAL


async def test_a_call_that_the_engine_refuses_is_a_public_error_that_begins_with_the_cause() -> None:
    said: list[rv.EngineCallError] = []

    async def hook(gate: rv.Gate) -> None:
        try:
            await gate.call("fly", 1)
        except rv.EngineCallError as error:
            said.append(error)

    async with local(gate=hook) as sup:
        await wait_for_state(sup, "llm/1", SERVING, timeout=60)
    (error,) = said
    assert isinstance(error, rv.CallError)
    assert (error.child, error.method) == ("llm/1", "fly")
    root = "EngineError: the simulated engine has no method 'fly'"
    assert str(error) == f"{root}: 'llm/1' failed to carry out fly()"
    assert str(error.causes[-1]) == root


async def test_a_host_that_is_lost_is_a_public_error_for_the_hook() -> None:
    async with local() as sup:
        engines = sup._running.engines
        gate = rv.Gate("llm/1", 1, engines.ask)
        await wait_for_state(sup, "llm/1", SERVING, timeout=60)
        link = engines._slots["llm/1"].link
        assert link is not None
        await link.end(30.0)
        with pytest.raises(rv.ChildUnavailableError, match=r"'llm/1' (was lost during fly|is not up as)"):
            await gate.call("fly")


async def test_the_arguments_of_an_engines_call_may_have_any_name() -> None:
    given = {"timeout": 3, "method": "m", "self": "s", "child": "c", "incarnation": 7, "kwargs": {}}
    answers: list[Any] = []

    async def hook(gate: rv.Gate) -> None:
        answers.append(await gate.call("collective_rpc", "a", **given))
        answers.append(await gate.options(timeout=30.0).call("collective_rpc", **given))

    async with local(gate=hook) as sup:
        await wait_for_state(sup, "llm/1", SERVING, timeout=60)
    assert answers == [[["a"], given], [[], given]]


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), "soon"])
def test_a_timeout_of_a_gate_that_cannot_work_is_refused(timeout: Any) -> None:
    with pytest.raises(rv.SpecError, match=r"timeout=.*: must be a number of seconds"):
        rv.Gate("llm/1", 1, lambda: None).options(timeout=timeout)  # type: ignore[arg-type,return-value]


async def test_with_a_spare_the_stream_goes_on_there_without_waiting_for_the_restart() -> None:
    async with local(standby=1) as sup:
        expected = await sup["llm"].generate("Once", GREEDY).result()
        watch = sup.watch()
        text, incarnations = "", set()
        async with sup["llm"].generate("Once", GREEDY) as stream:
            async for chunk in stream:
                if not text:
                    kill(sup, "llm/1")
                text += chunk.text
                incarnations.add(chunk.child)
        assert text == expected.text
        assert incarnations == {"llm/1", "llm/2"}
        await wait_for_state(sup, "llm/1", "ALIVE.STANDBY", incarnation=2, timeout=60)
    order = [(x.child, x.after) async for x in watch if isinstance(x, r.StateChanged)]
    assert order.index(("llm/2", SERVING)) < order.index(("llm/1", "RESTARTING.STARTING"))


def test_a_number_of_spares_that_cannot_be_is_refused() -> None:
    with pytest.raises(rv.SpecError, match=r"standby=-1: must be a whole number of spares, 0 or more"):
        local(standby=-1)
