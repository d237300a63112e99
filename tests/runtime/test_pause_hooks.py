"""Pause and resume hooks of actors: one at a time, in order, for the state that is wanted last."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from rayvisor import records as r
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.broadcaster import RecordBroadcaster
from rayvisor._runtime.pause_hooks import PauseHooks
from rayvisor._runtime.reporting import EventReporter
from rayvisor.specs import ActorHooks
from rayvisor.timeouts import RuntimeTimeouts
from statecharts import Configuration, compile_chart
from statecharts.lifecycles import ACTOR

TABLE = compile_chart(ACTOR)


class Actor:
    """Goes along its chart, and records the calls of its hooks."""

    def __init__(self, hooks: ActorHooks) -> None:
        self.spec = SimpleNamespace(start=SimpleNamespace(hooks=hooks))
        self.at: Configuration = TABLE.initial
        self.incarnation = 1
        self.calls: list[str] = []
        self.before_call: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    async def call(self, child: str, hook: Any) -> None:
        await self.before_call()
        self.calls.append(f"{child} {hook}")

    def status(self, child: str) -> Any:
        del child
        return self


@asynccontextmanager
async def paused(
    hooks: ActorHooks,
) -> AsyncIterator[tuple[Actor, PauseHooks, Callable[[str], None], list[r.Record]]]:
    actor, records = Actor(hooks), list[r.Record]()
    broadcaster = RecordBroadcaster(time.monotonic)
    broadcaster.attach(records.append)
    async with anyio.create_task_group() as tasks:
        timeouts = RuntimeTimeouts(pause_hook_retry=0.001)
        runs = PauseHooks(
            tasks, cast("Any", actor), actor.call, EventReporter(broadcaster), timeouts=timeouts
        )

        def fire(event: str) -> None:
            before = actor.at
            after = TABLE.step(before, event)
            assert after is not None
            actor.at = after
            runs.observe(m.Changed("a", actor.incarnation, event, before, after))

        fire("started")
        with anyio.fail_after(30):
            yield actor, runs, fire, records
        tasks.cancel_scope.cancel()


async def test_each_pause_and_each_resume_calls_its_hook() -> None:
    async with paused(ActorHooks(pause="hold", resume="go_on")) as (actor, runs, fire, _):
        for _ in range(3):
            fire("pause")
            await runs.settled("", 10)
            fire("resume")
            await runs.settled("", 10)
        assert actor.calls == ["a hold", "a go_on"] * 3


async def test_a_run_of_hooks_has_a_scope_of_its_own() -> None:
    async with paused(ActorHooks(pause="hold", resume="go_on")) as (actor, runs, fire, _):
        scopes = []
        for event in ("pause", "resume", "pause"):
            fire(event)
            scopes.append(runs._states["a"].running)
            await runs.settled("", 10)
            assert runs._states["a"].running is None
        assert len(set(map(id, scopes))) == 3
        actor.before_call = anyio.sleep_forever
        fire("resume")
        await anyio.wait_all_tasks_blocked()
        fire("fault")
        await runs.settled("", 10)
        assert actor.calls == ["a hold", "a go_on", "a hold"]
        assert runs._states == {}


async def test_while_a_hook_runs_only_the_state_that_is_wanted_last_counts() -> None:
    async with paused(ActorHooks(pause="hold", resume="go_on")) as (actor, runs, fire, _):
        may_go_on = anyio.Event()
        actor.before_call = may_go_on.wait
        fire("pause")
        await anyio.wait_all_tasks_blocked()
        for event in ("resume", "pause", "resume"):
            fire(event)
        may_go_on.set()
        await runs.settled("", 10)
        assert actor.calls == ["a hold", "a go_on"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("no"), "OSError: no"),
        (asyncio.CancelledError("no"), "UserCodeError: .* CancelledError: no"),
        (GeneratorExit("no"), "UserCodeError: .* GeneratorExit: no"),
    ],
)
async def test_a_hook_that_fails_each_time_is_recorded(error: BaseException, text: str) -> None:
    async def fail() -> None:
        raise error

    async with paused(ActorHooks(pause="hold")) as (actor, runs, fire, records):
        actor.before_call = fail
        fire("pause")
        await runs.settled("a", 10)
        (failed,) = [each for each in records if isinstance(each, r.HookFailed)]
        assert failed.hook == "pause"
        assert re.fullmatch(text, failed.error)
