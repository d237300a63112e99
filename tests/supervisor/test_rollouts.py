"""Weights that move: what is generated before, during and after, in a running tree of simulated engines."""

from __future__ import annotations

import os
import signal
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor.pool import WeightsChangedError
from rayvisor.testing import wait_for_state

GREEDY = {"max_tokens": 100, "temperature": 0.0, "ignore_eos": True}
SERVING = "ALIVE.SERVING"


class Weights:
    """The weight version that engines must generate with; the hook of one child can be delayed."""

    def __init__(self) -> None:
        self.version = 1
        self.held: str | None = None
        self.go_on = anyio.Event()

    async def sync(self, gate: rv.Gate) -> int:
        version = self.version
        if gate.child == self.held:
            await self.go_on.wait()
        await gate.call("update_weights", version)
        return version


def rollouts(weights: Weights, **options: Any) -> rv.Supervisor:
    options = {"size": 1, "engine": "sim", "engine_args": {"tokens_per_second": 200.0}, **options}
    pool = rv.engine_pool("llm", gate=weights.sync, **options)
    return rv.Supervisor(rv.SupervisorSpec(children=[pool]), local=True, seed=7)


def kill(sup: rv.Supervisor, child: str) -> None:
    pid = next(p.pid for role, p in sup.processes(child) if role == "engine" and "EngineCore" in p.name)
    os.kill(pid, signal.SIGKILL)


async def test_weights_that_move_under_a_request_are_what_the_whole_of_its_completion_comes_from() -> None:
    weights = Weights()
    async with rollouts(weights, on_weights_changed="restart") as sup:
        old = await sup["llm"].generate("Once", GREEDY).result()
        restarted: list[int] = []
        async with sup["llm"].generate("Once", GREEDY) as stream:
            async for chunk in stream:
                if weights.version == 1:
                    weights.version = 2
                    await sup.mark_stale("llm")
                if chunk.restarted:
                    restarted.append(chunk.weight_version)
            moved = stream.completion
        fresh = await sup["llm"].generate("Once", GREEDY).result()
    assert moved is not None
    assert restarted == [2]
    assert (old.weight_versions, moved.weight_versions, fresh.weight_versions) == ((1,), (2,), (2,))
    assert moved.token_ids == fresh.token_ids != old.token_ids


async def test_a_request_may_go_on_with_other_weights_or_fail() -> None:
    weights = Weights()
    async with rollouts(weights, on_weights_changed="splice") as sup:
        pool = sup["llm"]
        old = await pool.generate("Once", GREEDY).result()
        spliced = pool.generate("Once", GREEDY)
        fails = pool.generate("Once", GREEDY, on_weights_changed="fail")
        chunks = [await anext(spliced)]
        await anext(fails)
        weights.version = 2
        await sup.mark_stale("llm")
        with pytest.raises(WeightsChangedError, match="from version 1 to 2"):
            await fails.result()
        chunks += [chunk async for chunk in spliced]
        completion = await spliced.result()
        assert completion.weight_versions == (1, 2)
        assert len(completion.token_ids) == 100
        # Each token is the one that the weights of its chunk give at that place: none is off by one.
        first = tuple(token for chunk in chunks if chunk.weight_version == 1 for token in chunk.token_ids)
        assert first == old.token_ids[: len(first)]
        again = [*(completion.prompt_token_ids or ()), *first]
        rest = await pool.generate(again, {**GREEDY, "max_tokens": 100 - len(first)}).result()
        assert first + rest.token_ids == completion.token_ids != old.token_ids


async def test_a_step_that_loses_an_engine_ends_with_every_sample_from_its_weights_and_no_stale_spare() -> (
    None
):
    weights = Weights()
    async with rollouts(weights, size=2, standby=1, on_weights_changed="restart") as sup:
        watch = sup.watch()
        await wait_for_state(sup, "llm/3", "ALIVE.STANDBY", timeout=60)
        weights.version, weights.held = 2, "llm/3"
        await sup.mark_stale("llm")
        streams = [sup["llm"].generate(f"Question {number}", GREEDY) for number in range(6)]
        victim = (await anext(streams[0])).child
        kill(sup, victim)
        children, versions = set(), set()
        for stream in streams:
            async for chunk in stream:
                children.add(chunk.child)
                versions.add(chunk.weight_version)
            assert stream.completion is not None
            assert len(stream.completion.token_ids) == 100
        assert versions == {2}
        assert "llm/3" not in children
        await wait_for_state(sup, victim, SERVING, incarnation=2, timeout=60)
        assert sup.status("llm/3").leaf == "STALE"
        weights.go_on.set()
        await wait_for_state(sup, "llm/3", "ALIVE.STANDBY", timeout=60)
    moves = [x async for x in watch if isinstance(x, r.StateChanged) and x.child == victim]
    back = [x.after for x in moves if x.incarnation == 2 and x.after.startswith(("ALIVE", "PAUSED"))]
    assert back[:2] == ["PAUSED.STALE", SERVING]


async def test_a_hook_that_is_called_off_by_a_newer_version_leaves_nothing_of_the_older_one() -> None:
    weights = Weights()
    async with rollouts(weights, on_weights_changed="restart") as sup:
        weights.version, weights.held = 2, "llm/1"
        await sup.mark_stale("llm")
        stream = sup["llm"].generate("Once", GREEDY)
        weights.version, weights.held = 3, None
        await sup.mark_stale("llm")
        assert (await stream.result()).weight_versions == (3,)
