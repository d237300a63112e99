"""A driver for the signal tests: run as a program, it says what happens in lines of standard output.

    python -m tests.supervisor.driver {async,group,thread} ADDRESS [key=value ...]

ADDRESS ``own`` starts a Ray, ``local`` needs none. Keys: ``start_delay`` of its engine, ``shutdown`` of its
last child (seconds, or ``infinity``) and ``ending`` (how long that child takes to end), ``kill`` (an engine
process to kill once it is up).
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio

import rayvisor as rv
from rayvisor import records as r


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - it is how a test hears of it


def child(name: str, ending: float = 0.0) -> Any:
    async def run() -> None:
        say("+", name)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(ending, shield=True):
                await anyio.sleep_forever()
            say("-", name)

    return run


def tree(keys: dict[str, str]) -> rv.SupervisorSpec:
    shutdown = keys.get("shutdown", "5")
    arguments = {"tokens_per_second": 20.0, "start_delay": float(keys.get("start_delay", "0"))}
    return rv.SupervisorSpec(
        children=[
            rv.coroutine("first", child("first")),
            rv.engine_pool("llm", engine="sim", engine_args=arguments, num_cpus=0),
            rv.coroutine(
                "last",
                child("last", float(keys.get("ending", "0"))),
                shutdown=math.inf if shutdown == "infinity" else float(shutdown),
            ),
        ]
    )


async def report(watch: AsyncIterator[r.Record]) -> None:
    async for record in watch:
        if isinstance(record, r.StateChanged) and record.child.startswith("llm"):
            say("llm" if record.child == "llm" else "engine", record.incarnation, record.after)
        elif isinstance(record, r.StartProgressed):
            say("phase", record.phase)


def processes(supervisor: Any) -> list[int]:
    return [process.pid for _, process in supervisor.processes("llm/1")]


def kill(supervisor: rv.Supervisor, name: str) -> None:
    for _, process in supervisor.processes("llm/1"):
        if name in process.name:
            os.kill(process.pid, signal.SIGKILL)


async def asynchronous(keys: dict[str, str], options: dict[str, Any]) -> None:
    supervisor = rv.Supervisor(tree(keys), **options)
    reporting = asyncio.ensure_future(report(supervisor.watch()))
    try:
        async with supervisor:
            say("processes", *processes(supervisor))
            say("up")
            if "kill" in keys:
                kill(supervisor, keys["kill"])
            async for _ in supervisor["llm"].generate("Once", {"max_tokens": 2000, "ignore_eos": True}):
                pass
    finally:
        await reporting
    say("not reached")


async def grouped(keys: dict[str, str], options: dict[str, Any]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child("beside"))
        await asynchronous(keys, options)


def threaded(keys: dict[str, str], options: dict[str, Any]) -> None:
    with rv.run_in_thread(tree(keys), **options) as supervisor:
        say("processes", *processes(supervisor))
        say("up")
        for _ in supervisor["llm"].generate("Once", {"max_tokens": 2000, "ignore_eos": True}):
            pass
    say("not reached")


def main(way: str, address: str, *pairs: str) -> None:
    keys = dict(pair.split("=", 1) for pair in pairs)
    options: dict[str, Any] = {"address": address}
    if address == "own":
        options = {"ray_options": {"num_cpus": 2}}
    elif address == "local":
        options = {"local": True}
    say("pid", os.getpid(), threading.active_count())
    if way in {"async", "group"}:
        anyio.run(asynchronous if way == "async" else grouped, keys, options)
    else:
        threaded(keys, options)


if __name__ == "__main__":
    main(*sys.argv[1:])
