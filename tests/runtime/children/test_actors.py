"""Actors in the supervisor's process: a reference waits for events, and does not poll."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio
import pytest

from rayvisor._core.supervision import messages as m
from rayvisor._runtime.children.actors import ActorBackend
from rayvisor.refs import ChildRef
from rayvisor.timeouts import RuntimeTimeouts
from statecharts import compile_chart
from statecharts.lifecycles import ACTOR

TABLE = compile_chart(ACTOR)


class Actor:
    """An incarnation that answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handle = object()

    async def call(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, timeout: float | None
    ) -> str:
        del method, args, kwargs, timeout
        return self.name


@pytest.fixture
def backend() -> ActorBackend:
    return ActorBackend(cast("Any", None), cast("Any", None))


def ref_to(backend: ActorBackend) -> ChildRef:
    return ChildRef("a", backend, timeouts=RuntimeTimeouts(actor_lookup_retry=3600.0))


def up(backend: ActorBackend, name: str) -> Any:
    actor: Any = Actor(name)
    backend.up("a", actor)
    return actor


def fire(backend: ActorBackend, *events: str) -> None:
    at = TABLE.initial
    for event in events:
        after = TABLE.step(at, event)
        assert after is not None
        at, before = after, at
        backend.observe(m.Changed("a", 1, event, before, after))


async def test_a_call_that_waits_continues_when_the_actor_comes_up(backend: ActorBackend) -> None:
    answers: list[str] = []

    async def call() -> None:
        answers.append(await ref_to(backend).options(idempotent=True, timeout=60.0).call("x"))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            up(backend, "a#1")
    assert answers == ["a#1", "a#1"]
    assert backend._changes == {}


async def test_a_call_that_waits_continues_when_the_actor_is_resumed(backend: ActorBackend) -> None:
    answers: list[str] = []

    async def call() -> None:
        answers.append(await ref_to(backend).call("x"))

    up(backend, "a#1")
    fire(backend, "started", "pause")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            assert answers == []
            fire(backend, "started", "pause", "resume")
    assert answers == ["a#1"]


async def test_a_call_waits_for_the_incarnation_after_one_that_has_left(backend: ActorBackend) -> None:
    first = up(backend, "a#1")
    backend.left("a", first)
    answers: list[str] = []

    async def call() -> None:
        answers.append(await ref_to(backend).options(idempotent=True).call("x"))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            up(backend, "a#2")
    assert answers == ["a#2"]
