"""Recovery in place in a running tree, with simulated engines that have vLLM's fault tolerance."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor.testing import wait_for_state
from tests.waiting import until

PROMPTS = [f"Once upon a time, {number}" for number in range(4)]
GREEDY = {"max_tokens": 150, "temperature": 0.0, "ignore_eos": True}
SAMPLED = {"max_tokens": 150, "temperature": 0.9, "ignore_eos": True}
TOLERANT = {"fault_tolerance": True}
SERVING = "ALIVE.SERVING"


def group(*own: dict[str, Any], **options: Any) -> rv.ChildSpec:
    """A group of a rank for each mapping."""
    given = {"engine": "sim", "engine_args": TOLERANT, "start_timeout": 120.0, **options}
    return rv.engine_group("llm", ranks=len(own), rank_args=own, **given)


def pool(**arguments: Any) -> rv.ChildSpec:
    return rv.engine_pool("llm", engine="sim", engine_args=arguments, start_timeout=120.0)


def tree(child: rv.ChildSpec) -> rv.Supervisor:
    return rv.Supervisor(rv.SupervisorSpec(children=[child]), local=True, seed=7)


def send(sup: rv.Supervisor, number: signal.Signals, child: str = "llm/1", name: str = "EngineCore") -> None:
    os.kill(next(p.pid for _, p in sup.processes(child) if name in p.name), number)


async def read(sup: rv.Supervisor, into: dict[str, Sequence[int]], prompt: str) -> None:
    params = GREEDY if prompt.endswith(("0", "1")) else {**SAMPLED, "seed": 11}
    async with sup["llm"].generate(prompt, params) as generation:
        into[prompt] = [token async for chunk in generation for token in chunk.token_ids]


async def without_a_fault() -> dict[str, Sequence[int]]:
    texts: dict[str, Sequence[int]] = {}
    async with tree(pool()) as sup:
        for prompt in PROMPTS:
            await read(sup, texts, prompt)
    return texts


async def play(
    child: rv.ChildSpec, harm: Callable[[rv.Supervisor], object], then: Callable[[rv.Supervisor], Any]
) -> tuple[dict[str, Sequence[int]], list[r.Record]]:
    """Harm a tree while it streams; what was read, and what happened."""
    texts: dict[str, Sequence[int]] = {}
    async with tree(child) as sup:
        watch = sup.watch()
        async with anyio.create_task_group() as tasks:
            for prompt in PROMPTS:
                tasks.start_soon(read, sup, texts, prompt)
            await until(lambda: sup["llm"].stats().tokens >= 40)
            harm(sup)
        await then(sup)
    return texts, [record async for record in watch]


def fail_a_step(sup: rv.Supervisor) -> None:
    send(sup, signal.SIGUSR1)


async def serving_again(sup: rv.Supervisor) -> None:
    await wait_for_state(sup, "llm/1", SERVING, timeout=60)


def moves(seen: Sequence[r.Record], child: str) -> list[str]:
    return [x.after for x in seen if isinstance(x, r.StateChanged) and x.child == child]


def told(seen: Sequence[r.Record], kind: type) -> list[Any]:
    return [x for x in seen if isinstance(x, kind)]


async def test_all_ranks_retry_in_place_and_no_token_is_lost_or_doubled() -> None:
    texts, seen = await play(group({}, {}), fail_a_step, serving_again)
    assert texts == await without_a_fault()
    for child in ("llm/1", "llm/2"):
        assert moves(seen, child)[:3] == ["PAUSED.FAULTED", "PAUSED.RETRYING", SERVING]
    (fault,) = [x.fault for x in told(seen, r.FaultSeen)]
    assert (fault.child, fault.incarnation, fault.fault_class) == ("llm/1", 1, rv.FaultClass.RECOVERABLE)
    assert str(fault.root) == "RuntimeError: a step was asked to fail"
    assert fault.causes[0].message == "the engine waits for an instruction: RuntimeError"
    assert "processes.py, line " in fault.place
    assert [x.decision for x in told(seen, r.DecisionMade)] == ["in_place"]
    paused = next(x.at for x in told(seen, r.StateChanged) if x.event == "unhealthy")
    served = max(x.at for x in told(seen, r.StateChanged) if x.event == "recovered")
    assert served - paused < 1.0  # a tenth of that, where nothing else wants the cores


async def test_an_exception_without_fault_tolerance_ends_the_engine_and_it_is_restarted() -> None:
    texts, seen = await play(pool(), fail_a_step, serving_again)
    assert texts == await without_a_fault()
    (fault,) = [x.fault for x in told(seen, r.FaultSeen)]
    assert fault.fault_class is rv.FaultClass.FATAL
    assert str(fault.root) == "RuntimeError: a step was asked to fail"
    assert "processes.py, line " in fault.place
    assert [x.decision for x in told(seen, r.DecisionMade)] == ["restart"]


async def test_a_lone_engine_with_fault_tolerance_retries_in_place() -> None:
    texts, seen = await play(pool(**TOLERANT), fail_a_step, serving_again)
    assert texts == await without_a_fault()
    assert [x.decision for x in told(seen, r.DecisionMade)] == ["in_place"]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"retry": "fail"}, "it refused 'retry': the collective failed"),
        ({"retry": "ignore"}, "no acknowledgement of 'retry' within 0.72 s"),
        ({"retry": "ignore", "recovery_timeout": 0.5}, "no acknowledgement of 'retry' within 0.4 s"),
    ],
    ids=["refused", "no-answer", "before-the-engine-s-own-deadline"],
)
async def test_a_rank_that_does_not_recover_has_the_group_restarted_over_the_first_fault(
    own: dict[str, Any], why: str
) -> None:
    texts, seen = await play(group(own, {}, recovery_timeout=0.8), fail_a_step, serving_again)
    assert texts == await without_a_fault()
    assert ("llm/1", why) in [(x.child, x.why) for x in told(seen, r.RecoveryFailed)]
    assert [x.decision for x in told(seen, r.DecisionMade)] == ["in_place", "restart"]
    (fault,) = [x.fault for x in told(seen, r.FaultSeen)]
    assert str(fault.root) == "RuntimeError: a step was asked to fail"
    for child in ("llm/1", "llm/2"):
        assert moves(seen, child)[1:3] == ["PAUSED.RETRYING", "RESTARTING.STOPPING"]


async def test_no_acknowledgement_from_one_of_two_faulty_ranks_has_both_restarted() -> None:
    def fail_both(sup: rv.Supervisor) -> None:
        send(sup, signal.SIGUSR1, "llm/1")
        send(sup, signal.SIGUSR1, "llm/2")

    texts, seen = await play(group({}, {"retry": "ignore"}, recovery_timeout=0.8), fail_both, serving_again)
    assert texts == await without_a_fault()
    assert [x.child for x in told(seen, r.RecoveryFailed)] == ["llm/2"]
    decisions = [x.decision for x in told(seen, r.DecisionMade)]
    assert decisions == ["in_place", "restart"]
    for child in ("llm/1", "llm/2"):
        assert moves(seen, child).count(SERVING) == 1


async def test_a_fault_on_each_retry_uses_up_the_recoveries_and_then_the_group_is_restarted() -> None:
    async def restarted(sup: rv.Supervisor) -> None:
        await wait_for_state(sup, "llm/1", SERVING, incarnation=2, timeout=60)

    texts, seen = await play(group({"retry": "fault_again"}, {}, recoveries=2), fail_a_step, restarted)
    assert texts == await without_a_fault()
    decisions = [x.decision for x in told(seen, r.DecisionMade)]
    assert decisions[-1] == "restart"
    assert set(decisions[:-1]) == {"in_place"}
    assert len(decisions) <= 3  # the second fault may come while the first retry is under way
    assert {str(x.fault.root) for x in told(seen, r.FaultSeen)} == {"RuntimeError: a step was asked to fail"}


async def test_an_engine_that_says_it_is_dead_is_ended_at_once_and_not_when_its_patience_is_over() -> None:
    texts, seen = await play(pool(**TOLERANT), lambda sup: send(sup, signal.SIGUSR2), serving_again)
    assert texts == await without_a_fault()
    (fault,) = [x.fault for x in told(seen, r.FaultSeen)]
    assert fault.fault_class is rv.FaultClass.FATAL
    assert str(fault.causes[0]) == "EngineDead: the engine says that it is dead: RuntimeError"
    assert str(fault.root) == "RuntimeError: declared dead by a signal"
    assert [x.decision for x in told(seen, r.DecisionMade)] == ["restart"]


async def test_a_rank_killed_while_the_group_recovers_has_the_group_restarted() -> None:
    async def kill(sup: rv.Supervisor) -> None:
        await wait_for_state(sup, "llm/1", "PAUSED.RETRYING", timeout=30)
        send(sup, signal.SIGKILL, "llm/2")
        await wait_for_state(sup, "llm/2", SERVING, incarnation=2, timeout=60)
        await wait_for_state(sup, "llm/1", SERVING, incarnation=2, timeout=60)

    async with tree(group({"retry": "ignore"}, {}, recovery_timeout=60.0)) as sup:
        watch = sup.watch()
        async with anyio.create_task_group() as tasks:
            texts: dict[str, Sequence[int]] = {}
            for prompt in PROMPTS:
                tasks.start_soon(read, sup, texts, prompt)
            await until(lambda: sup["llm"].stats().tokens >= 40)
            fail_a_step(sup)
            await kill(sup)
    assert texts == await without_a_fault()
    seen = [record async for record in watch]
    assert [x.fault.child for x in told(seen, r.FaultSeen)] == ["llm/1", "llm/2"]
    assert {x.decision for x in told(seen, r.DecisionMade)} == {"in_place", "restart"}


async def test_an_end_long_after_a_recovery_is_not_put_down_to_the_old_fault() -> None:
    async with tree(group({}, {})) as sup:
        await until(lambda: sup["llm"].stats().tokens == 0)
        texts: dict[str, Sequence[int]] = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, sup, texts, PROMPTS[0])
            await until(lambda: sup["llm"].stats().tokens >= 10)
            fail_a_step(sup)
        await wait_for_state(sup, "llm/1", SERVING, timeout=30)
        await sup.restart("llm/1")
        assert sup._running.runtime.incarnations.fault("llm/1", 1) is None


def test_ranks_have_arguments_of_their_own_and_share_the_rest() -> None:
    made = rv.engine_group(
        "llm",
        engine_args={"model": "/m", "data_parallel_size": 3},
        ranks=3,
        rank_args=lambda rank: {"data_parallel_rank": rank},
        period=600.0,
        intensity=1,
        backoff=rv.Backoff(maximum=10.0),
        start_timeout=100.0,
    )
    spec = made.start
    assert isinstance(spec, rv.SupervisorSpec)
    assert (spec.strategy, spec.recover_as_group, spec.max_concurrent_starts, spec.period) == (
        "one_for_all",
        True,
        3,
        600.0,
    )
    assert [child.id for child in spec.children] == ["1", "2", "3"]
    assert [child.start.arguments for child in spec.children] == [  # type: ignore[union-attr]
        {"model": "/m", "data_parallel_size": 3, "data_parallel_rank": rank} for rank in range(3)
    ]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"ranks": 0}, "ranks"),
        ({"ranks": True}, "ranks"),
        ({"ranks": 2, "rank_args": [{}]}, "rank_args"),
        ({"ranks": 2, "rank_args": lambda _: None}, "rank_args"),
        ({"ranks": 2, "strategy": "one_for_one"}, "strategy"),
        ({"ranks": 2, "standby": 1}, "standby"),
        ({"ranks": 2, "engine_args": "model"}, "engine_args"),
    ],
)
def test_a_group_that_cannot_be_is_refused_with_the_field_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(rv.SpecError) as refused:
        rv.engine_group("llm", **{"engine_args": {}, **given})
    assert refused.value.field == field


def test_a_wrong_option_of_a_group_is_named() -> None:
    with pytest.raises(TypeError, match="recoverys"):
        rv.engine_group("llm", engine_args={}, ranks=2, recoverys=1)  # type: ignore[call-arg]  # the mistake
