"""A runtime on a stage: children that do what a test's script says, and a record of all that happens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio
from anyio.abc import TaskGroup

from rayvisor import records as r
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.broadcaster import RecordBroadcaster
from rayvisor._runtime.lifecycle import LifecycleMachine
from rayvisor._runtime.loop import Runtime
from rayvisor._runtime.reporting import EventReporter
from rayvisor.faults import Cause, Exit, Termination
from rayvisor.specs import ChildSpec, Shutdown, SupervisorSpec
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts
from statecharts.lifecycles import CHARTS
from tests.waiting import until

Step = Callable[["ScriptedIncarnation"], Awaitable[Any]]


@dataclass(frozen=True)
class Scripted:
    """The start of a scripted child."""

    kind: str = "scripted"


async def nothing(_: ScriptedIncarnation) -> None:
    """Do it at once."""


async def proven(_: ScriptedIncarnation) -> bool:
    return True


class ScriptedIncarnation:
    """A carrier that does what its test says."""

    def __init__(self, backend: ScriptedBackend, child: str, incarnation: int) -> None:
        self.backend = backend
        self.child = child
        self.incarnation = incarnation
        self.name = f"{child}#{incarnation}"
        self.dead = anyio.Event()
        self.ending = Termination(causes=(Cause("Crash", self.name),))

    def die(self, *causes: str, **facts: Any) -> None:
        if causes:
            self.ending = Termination(causes=tuple(Cause("Crash", cause) for cause in causes), **facts)
        self.dead.set()

    async def start(self) -> None:
        self.backend.diary.append(f"start {self.name}")
        await self.backend.start(self)

    async def ended(self) -> Termination:
        await self.dead.wait()
        return self.ending

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:
        del reason
        how = "kill" if shutdown.seconds is None else "stop"
        self.backend.diary.append(f"{how} {self.name}")
        step = self.backend.kill if shutdown.seconds is None else self.backend.stop
        return bool(await step(self))

    async def clean(self) -> bool:
        self.backend.diary.append(f"clean {self.name}")
        return bool(await self.backend.clean(self))


@dataclass
class ScriptedBackend:
    """Carries children by its steps, and keeps a diary."""

    start: Step = nothing
    stop: Step = proven
    kill: Step = proven
    clean: Step = proven
    diary: list[str] = field(default_factory=list)
    carriers: dict[str, ScriptedIncarnation] = field(default_factory=dict)

    async def open(self) -> None:
        pass

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> ScriptedIncarnation:
        del spec, predecessor
        carrier = self.carriers[f"{child}#{incarnation}"] = ScriptedIncarnation(self, child, incarnation)
        return carrier

    async def release(self, child: str) -> None:
        self.diary.append(f"release {child}")

    async def close(self) -> None:
        pass


@dataclass
class Stage:
    """A running tree of scripted children, and what was told of it."""

    runtime: Runtime
    backend: ScriptedBackend
    records: list[r.Record]
    tasks: TaskGroup

    def at(self, child: str) -> str:
        return self.runtime.core.children[child].configuration.leaf

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        await until(condition, seconds)

    async def up(self) -> None:
        with anyio.fail_after(60):
            await self.runtime.settled.wait()

    async def end(self) -> m.TreeEnded:
        self.runtime.post(m.Halt())
        with anyio.fail_after(60):
            await self.runtime.over.wait()
        assert self.runtime.ended is not None
        return self.runtime.ended

    def seen(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


class _Recording(RecordBroadcaster):
    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.records: list[r.Record] = []

    def publish(self, record: r.Record) -> None:
        self.records.append(record)
        super().publish(record)


def children(*ids: str, **options: Any) -> list[ChildSpec]:
    """Specs of scripted children."""
    return [ChildSpec(id=id_, start=Scripted(), **options) for id_ in ids]


@asynccontextmanager
async def play(
    *specs: ChildSpec,
    backend: ScriptedBackend | None = None,
    call_limit: int = 100,
    flags: Mapping[str, Any] | None = None,
    timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
) -> AsyncIterator[Stage]:
    """Run a tree whose children a `ScriptedBackend` carries."""
    backend = backend or ScriptedBackend()
    broadcaster = _Recording()
    machines = {name: LifecycleMachine(CHARTS[name]) for name in ("actor", "engine")}
    async with anyio.create_task_group() as tasks:
        runtime = Runtime(
            SupervisorSpec(children=specs, **(flags or {})),
            Random(1),
            tasks,
            {"scripted": backend},
            machines=machines,
            reporter=EventReporter(broadcaster),
            call_limit=call_limit,
            timeouts=timeouts,
        )
        tasks.start_soon(runtime.run)
        yield Stage(runtime, backend, broadcaster.records, tasks)
        if not runtime.over.is_set():
            runtime.kill()
            with anyio.fail_after(60):
                await runtime.over.wait()
        tasks.cancel_scope.cancel()
