"""Object refs of a real Ray: waited for again, asked anew where they are spent, nothing made twice."""

from __future__ import annotations

import asyncio
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError

import rayvisor as rv

pytestmark = pytest.mark.ray

QUICK = rv.Backoff(initial=0.01, maximum=0.05, first_delay_zero=False)
ENGINES = 8


class _Engine:
    """Makes an engine for each round, once; writes down what it does; may die before it made one."""

    def __init__(self, diary: Path, rank: int) -> None:
        self.diary = diary
        self.rank = rank
        self.made: dict[int, str] = {}
        self.note("init")

    def note(self, what: str) -> None:
        with self.diary.open("a", encoding="utf-8") as file:
            file.write(f"{what} {self.rank}\n")

    def ensure_started(self, round_: int, *, die: bool = False) -> str:
        died = self.diary.with_name(f"died-{round_}-{self.rank}")
        if die and not died.exists():
            died.touch()
            os._exit(1)
        if round_ not in self.made:
            time.sleep(0.005)
            self.made[round_] = f"engine {self.rank} of round {round_}"
            self.note(f"made {round_}")
        return self.made[round_]


Engine: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Engine)


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def lines(diary: Path, what: str) -> list[str]:
    return sorted(line for line in diary.read_text(encoding="utf-8").splitlines() if line.startswith(what))


def ask(engines: list[Any], round_: int, rank: int) -> Any:
    return engines[rank].ensure_started.remote(round_)


def inject(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> list[int]:
    """Have a random third of all waits end as if Ray could not reach the actor."""
    get, injected = ray.get, []

    def unlucky(ref: Any, *, timeout: float | None = None) -> Any:
        if chance.random() < 1 / 3:
            injected.append(1)
            raise ActorUnavailableError("injected: the peer missed a heartbeat", None)
        return get(ref, timeout=timeout)

    monkeypatch.setattr(ray, "get", unlucky)
    return injected


def test_all_engines_come_up_made_once_though_a_third_of_the_waits_fails_and_actors_die(
    cluster_address: str, diary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster_address
    rounds = int(os.environ.get("RAYVISOR_ROUNDS_WITH_DEATHS", "2"))
    engines = [Engine.remote(diary, rank) for rank in range(ENGINES)]
    failed = 0
    for seed in range(20):
        chance = random.Random(seed)
        dying = {rank for rank in range(ENGINES) if seed < rounds and chance.random() < 1 / 3}
        with monkeypatch.context() as patch:
            injected = inject(patch, chance)
            refs = [
                engine.ensure_started.remote(seed, die=rank in dying) for rank, engine in enumerate(engines)
            ]
            up = rv.retry(
                refs, max_attempts=12, backoff=QUICK, seed=seed, reprobe=partial(ask, engines, seed)
            ).result()
            failed += len(injected) + len(dying)
        assert up == [f"engine {rank} of round {seed}" for rank in range(ENGINES)]
        assert lines(diary, f"made {seed} ") == [f"made {seed} {rank}" for rank in range(ENGINES)]
        deaths = len(list(diary.parent.glob("died-*")))
        assert len(lines(diary, "init")) == ENGINES + deaths  # what Ray started again; nobody made another
        assert deaths or seed > 0
    assert failed > 20
    for engine in engines:
        ray.kill(engine)


def test_an_init_error_among_them_surfaces_at_once_and_unmasked(cluster_address: str) -> None:
    assert cluster_address

    class Loading:
        def __init__(self, problem: str) -> None:
            if problem:
                raise ValueError(problem)

        def ready(self) -> None:
            time.sleep(600)

    loading: Any = ray.remote(num_cpus=0)(Loading)
    actors = [loading.remote(""), loading.remote("CUDA out of memory"), loading.remote("")]
    asked: list[int] = []

    def reprobe(rank: int) -> Any:
        asked.append(rank)
        return actors[rank].ready.remote()

    with pytest.raises(ActorDiedError, match="CUDA out of memory") as raised:
        rv.retry([actor.ready.remote() for actor in actors], reprobe=reprobe).result()
    assert not getattr(raised.value, "__notes__", None)
    assert asked == []
    for actor in actors:
        ray.kill(actor)


async def test_a_spent_ref_is_asked_for_anew_and_the_same_actor_answers(
    cluster_address: str, diary: Path
) -> None:
    assert cluster_address
    engine = Engine.remote(diary, 0)
    spent = engine.ensure_started.remote(1, die=True)
    with pytest.raises(ActorUnavailableError) as raised:
        await rv.retry(
            spent, max_attempts=2, backoff=QUICK
        )  # without reprobe: the same ref, which keeps raising
    (note,) = raised.value.__notes__
    assert note.startswith("rayvisor.retry: 2 attempts")

    asked: list[int] = []

    def reprobe(rank: int) -> Any:
        asked.append(rank)
        return engine.ensure_started.remote(1)

    slow = rv.Backoff(initial=0.2, maximum=1.0, first_delay_zero=False)
    assert await rv.retry(spent, max_attempts=20, backoff=slow, reprobe=reprobe) == "engine 0 of round 1"
    assert asked
    assert lines(diary, "made") == ["made 1 0"]
    assert len(lines(diary, "init")) == 2

    with pytest.raises(TypeError, match=r"reprobe\(0\) returned None"):
        await rv.retry(spent, max_attempts=3, backoff=QUICK, reprobe=lambda _: None)  # type: ignore[arg-type,return-value]
    ray.kill(engine)


async def test_cancellation_passes_and_what_was_cancelled_is_not_waited_for_again(
    cluster_address: str,
) -> None:
    assert cluster_address

    @ray.remote(num_cpus=0)
    def sleep() -> None:
        time.sleep(600)

    def never(_: Exception) -> bool:
        raise AssertionError("it was asked")

    ref = sleep.remote()
    waiting = asyncio.ensure_future(rv.retry([ref, ref], retry_on=never))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ray.cancel(ref, force=True)
    with pytest.raises(TaskCancelledError):
        await rv.retry(ref, retry_on=never)


async def test_values_come_in_the_order_of_the_refs_and_elapsed_time_bounds_the_wait(
    cluster_address: str,
) -> None:
    assert cluster_address

    @ray.remote(num_cpus=0)
    def double(value: int) -> int:
        if value > 5:
            time.sleep(600)
        return 2 * value

    refs = [double.remote(value) for value in range(3)]
    assert rv.retry([*refs, refs[0]]).result() == await rv.retry([*refs, refs[0]]) == [0, 2, 4, 0]
    assert rv.retry(refs[1]).result() == await rv.retry(refs[1]) == 2
    assert rv.retry([]).result() == await rv.retry([]) == []

    slow = double.remote(6)
    for wait in (lambda: rv.retry([refs[0], slow], timeout=0.2).result(), None):
        with pytest.raises(TimeoutError, match="1 of 2 refs are not ready after timeout="):
            wait() if wait is not None else await rv.retry([refs[0], slow], timeout=0.2)
    ray.cancel(slow, force=True)

    with pytest.raises(rv.SpecError, match=r"use rv\.submit"):
        rv.retry(double)  # type: ignore[call-overload]


def test_it_is_usable_inside_the_init_of_an_actor(cluster_address: str, diary: Path) -> None:
    assert cluster_address

    class Rollouts:
        """Brings its engines up in its ``__init__``: a transient error there would end it for good."""

        def __init__(self, diary: Path) -> None:
            self.engines = [Engine.remote(diary, rank) for rank in range(2)]
            refs = [
                engine.ensure_started.remote(0, die=rank == 1) for rank, engine in enumerate(self.engines)
            ]
            self.up = rv.retry(
                refs, reprobe=lambda rank: self.engines[rank].ensure_started.remote(0)
            ).result()

        def names(self) -> list[str]:
            return self.up

    made: Any = ray.remote(num_cpus=0)(Rollouts)
    rollouts = made.remote(diary)
    assert ray.get(rollouts.names.remote(), timeout=60) == ["engine 0 of round 0", "engine 1 of round 0"]
    assert lines(diary, "made") == ["made 0 0", "made 0 1"]
    ray.kill(rollouts)
