"""User code that blocks holds up no kill, and a kill that fails skips no other. No Ray is started."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rayvisor._backends.ray.actors import UserActor, UserActorFactory
from rayvisor._backends.ray.adopted import Adoption
from rayvisor._backends.ray.calls import CallThreads, Lane
from rayvisor._backends.ray.cleanup import kill_actor, remove_group
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.watch import ActorSnapshot, ActorState, WatchedActor
from rayvisor.specs import ActorOptions, AdoptStart
from tests.waiting import until


class Handle:
    """Ray's handle of an actor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor_id = SimpleNamespace(binary=name.encode, hex=lambda: name)


class Cluster:
    """A connection with real threads."""

    def __init__(self, calls: CallThreads) -> None:
        self.calls = calls

    async def call(self, name: str, function: Any, *, timeout: float = 10.0, **options: Any) -> Any:
        return await self.calls.run(name, function, timeout=timeout, **options)


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
async def calls(gate: threading.Event) -> AsyncIterator[CallThreads]:
    calls = CallThreads(2, user_size=2)
    yield calls
    gate.set()
    calls.close()


@pytest.fixture
def factory(calls: CallThreads) -> UserActorFactory:
    return UserActorFactory(cast("RayCluster", Cluster(calls)), push=False)


def actor_of(factory: UserActorFactory, name: str) -> UserActor:
    handle = Handle(name)
    return UserActor(factory, handle, name, ActorOptions(), WatchedActor(handle))


def kills(monkeypatch: pytest.MonkeyPatch, *actors: UserActor, failing: str = "") -> list[str]:
    """Have ``ray.kill`` end these actors, and raise for one of them; return the names of the killed ones."""
    loop = asyncio.get_running_loop()
    killed: list[str] = []

    def kill(handle: Handle, **_: Any) -> None:
        if handle.name == failing:
            raise ValueError("no such actor")
        killed.append(handle.name)
        for actor in actors:
            if actor.handle is handle:
                loop.call_soon_threadsafe(actor._watched.update, ActorSnapshot(ActorState.DEAD))

    monkeypatch.setattr("ray.kill", kill)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    return killed


async def test_hooks_that_block_hold_up_no_kill(
    factory: UserActorFactory, calls: CallThreads, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = actor_of(factory, "worker")
    killed = kills(monkeypatch, actor)
    hooks = [asyncio.create_task(actor.run(lambda _: gate.wait())) for _ in range(12)]
    await until(lambda: len(calls.under_way(Lane.USER)) == 2)
    began = time.monotonic()
    assert await actor.kill(30)
    assert time.monotonic() - began < 20
    assert killed == ["worker"]
    assert not any(hook.done() for hook in hooks)
    gate.set()
    await asyncio.gather(*hooks)


async def test_a_hook_that_blocks_longer_than_its_timeout_is_given_up(
    factory: UserActorFactory, gate: threading.Event
) -> None:
    with pytest.raises(TimeoutError):
        await actor_of(factory, "worker").run(lambda _: gate.wait(), timeout=0.05)


async def test_a_function_that_makes_an_adopted_actor_holds_up_no_kill(
    factory: UserActorFactory, calls: CallThreads, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> object:
        gate.wait()
        raise LookupError("no actor")

    adoption = Adoption(factory, "worker", AdoptStart(actor=None, make=make))
    until_then = asyncio.get_running_loop().time() + 60
    making = [asyncio.create_task(adoption._make(make, until_then, {})) for _ in range(12)]
    await until(lambda: len(calls.under_way(Lane.USER)) == 2)
    actor = actor_of(factory, "other")
    kills(monkeypatch, actor)
    assert await actor.kill(30)
    gate.set()
    outcomes = await asyncio.gather(*making, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LookupError}


async def test_a_kill_that_fails_skips_no_other_and_all_actors_are_forgotten(
    factory: UserActorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors = [actor_of(factory, name) for name in ("one", "two", "three")]
    factory._actors = {actor.name: actor for actor in actors}
    killed = kills(monkeypatch, *actors, failing="two")
    assert not await factory._kill_all(actors, 30)
    assert sorted(killed) == ["one", "three"]
    assert factory._actors == {}


async def test_a_kill_without_an_answer_is_no_proof_and_no_error(
    factory: UserActorFactory, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda *_, **__: gate.wait())
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    actor = actor_of(factory, "worker")
    assert not await actor.kill(0.05)


def test_a_kill_that_comes_after_rays_shutdown_starts_no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("ray.kill", lambda actor, **_: calls.append(actor))
    monkeypatch.setattr("ray.util.remove_placement_group", calls.append)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    kill_actor("actor")
    remove_group("group")
    assert calls == []
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    kill_actor("actor")
    remove_group("group")
    assert calls == ["actor", "group"]
