"""vLLM's own fault tolerance in a running tree, with one real engine for the whole test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.host import engine as engines
from rayvisor.specs import EnginePoolSpec, EngineStart
from rayvisor.testing import wait_for_state
from tests.real.conftest import ARGUMENTS

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("default"),  # warnings of vLLM and torch
]

PROMPTS = [f"Once upon a time, {number}" for number in range(4)]
PARAMS = {"max_tokens": 120, "temperature": 0.0, "ignore_eos": True}
SERVING = "ALIVE.SERVING"


class Armoury:
    """A readiness gate that accepts every engine, and keeps its handle."""

    async def keep(self, gate: rv.Gate) -> None:
        self.gate = gate

    async def arm(self, message: str) -> None:
        await self.gate.options(timeout=30.0).call("collective_rpc", "arm", args=(message,))


def tree(model: Path, gate: Callable[[rv.Gate], Any]) -> rv.Supervisor:
    pool = rv.engine_group(
        "llm",
        engine_args={"model": str(model), **ARGUMENTS},
        ranks=1,
        gate=gate,
        recoveries=1,
        start_timeout=600.0,
        request_timeout=900.0,
        period=86400.0,
    )
    spec = cast("EnginePoolSpec", pool.start)
    children = [
        replace(child, start=replace(cast("EngineStart", child.start), engine="tolerant"))
        for child in spec.children
    ]
    root = rv.SupervisorSpec(children=[replace(pool, start=replace(spec, children=children))])
    return rv.Supervisor(root, local=True, seed=7, handle_signals=False)


async def read(sup: rv.Supervisor, into: dict[str, Sequence[int]], prompt: str) -> None:
    async with sup["llm"].generate(prompt, PARAMS) as generation:
        into[prompt] = [token async for chunk in generation for token in chunk.token_ids]


async def read_all(sup: rv.Supervisor) -> dict[str, Sequence[int]]:
    texts: dict[str, Sequence[int]] = {}
    async with anyio.create_task_group() as tasks:
        for prompt in PROMPTS:
            tasks.start_soon(read, sup, texts, prompt)
    return texts


async def read_over_a_fault(sup: rv.Supervisor, armoury: Armoury, message: str) -> dict[str, Sequence[int]]:
    texts: dict[str, Sequence[int]] = {}
    before = sup["llm"].stats().tokens
    async with anyio.create_task_group() as tasks:
        for prompt in PROMPTS:
            tasks.start_soon(read, sup, texts, prompt)
        with anyio.fail_after(120):
            while sup["llm"].stats().tokens < before + 40:  # noqa: ASYNC110 - a pool has no event for its tokens
                await anyio.sleep(0.002)
        await armoury.arm(message)
    return texts


async def test_vllm_s_own_faults_are_retried_in_place_then_restarted_and_no_token_is_lost_or_doubled(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setitem(cast("dict[str, str]", engines.ENGINES), "tolerant", "tests.real.rig:TolerantEngine")
    armoury = Armoury()
    async with tree(random_model, armoury.keep) as sup:
        watch = sup.watch()
        await wait_for_state(sup, "llm/1", SERVING, timeout=600)
        info = sup.engine_info("llm/1")
        assert info is not None
        assert (info.instructions, info.recovery_timeout) == (("retry",), 120.0)
        expected = await read_all(sup)

        assert await read_over_a_fault(sup, armoury, "the first") == expected
        await wait_for_state(sup, "llm/1", SERVING, incarnation=1, timeout=60)

        # One recovery is allowed in this period: the next fault restarts the engine.
        assert await read_over_a_fault(sup, armoury, "the second") == expected
        await wait_for_state(sup, "llm/1", SERVING, incarnation=2, timeout=600)
        info = sup.engine_info("llm/1")
        assert info is not None
        assert info.instructions == ()

        # The second incarnation has no fault tolerance: an exception ends it.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, sup, {}, PROMPTS[0])
            await armoury.arm("the third")
            await wait_for_state(sup, "llm/1", "RESTARTING", timeout=60)
            tasks.cancel_scope.cancel()
    seen = [record async for record in watch]
    faults = [x.fault for x in seen if isinstance(x, r.FaultSeen)]
    assert [(str(fault.root), fault.fault_class) for fault in faults] == [
        ("RuntimeError: the first", rv.FaultClass.RECOVERABLE),
        ("RuntimeError: the second", rv.FaultClass.RECOVERABLE),
        ("RuntimeError: the third", rv.FaultClass.FATAL),
    ]
    assert all("rehearsal_worker.py, line " in fault.place for fault in faults)
    decisions = [x.decision for x in seen if isinstance(x, r.DecisionMade)]
    assert decisions[:2] == ["in_place", "restart"]
    moves = [x for x in seen if isinstance(x, r.StateChanged) and x.child == "llm/1"]
    paused = next(x.at for x in moves if x.event == "unhealthy")
    served = next(x.at for x in moves if x.event == "recovered")
    record_property("retry_in_place_ms", round((served - paused) * 1000.0, 1))
    print(f"status seen to serving again: {(served - paused) * 1000.0:.1f} ms")  # noqa: T201 - a measurement
    assert served - paused < 1.0  # about 0.1 s on an idle machine
