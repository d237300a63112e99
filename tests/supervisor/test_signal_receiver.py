"""The one receiver of signals in a program, with several trees; no Ray."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import pytest

import rayvisor as rv

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def tree() -> rv.Supervisor:
    return rv.Supervisor(rv.SupervisorSpec(children=[rv.coroutine("a", anyio.sleep_forever)]))


async def nested() -> None:
    async with tree(), tree():
        pass


async def one_after_the_other() -> None:
    for _ in range(3):
        async with tree():
            pass


async def one_inside_after_another() -> None:
    async with tree():
        await one_after_the_other()
        await nested()


async def overlapping() -> None:
    first_up, second_up = anyio.Event(), anyio.Event()

    async def first() -> None:
        async with tree():
            first_up.set()
            await second_up.wait()

    async def second() -> None:
        await first_up.wait()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(tree())
            second_up.set()
            await anyio.sleep(0.05)

    await asyncio.gather(first(), second())


@pytest.mark.parametrize("run", [nested, one_after_the_other, one_inside_after_another, overlapping])
async def test_after_the_last_tree_the_handlers_are_those_from_before(
    run: Callable[[], Awaitable[None]],
) -> None:
    def mine(*_: object) -> None:
        pass

    original = [signal.signal(number, mine) for number in NUMBERS]
    try:
        await run()
        assert [signal.getsignal(number) for number in NUMBERS] == [mine, mine]
    finally:
        for number, handler in zip(NUMBERS, original, strict=True):
            signal.signal(number, handler)


PROGRAM = """
import asyncio, os, signal, anyio, rayvisor as rv

async def work(name):
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.6)
        print("-", name, flush=True)

def tree(name):
    return rv.Supervisor(rv.SupervisorSpec(children=[rv.coroutine(name, work, args=[name])]))

async def send(*delays):
    for delay in delays:
        await anyio.sleep(delay)
        os.kill(os.getpid(), signal.{signal})

async def run(name):
    async with tree(name):
        await anyio.sleep_forever()

async def main():
    sender = asyncio.create_task(send({delays}))
{body}
anyio.run(main)
"""

BODIES = {
    "nested": """
        async with tree("outer"), anyio.create_task_group(), tree("inner"):
            await anyio.sleep_forever()
    """,
    "after an inner one": """
        async with tree("outer"):
            async with tree("inner"):
                pass
            await anyio.sleep_forever()
    """,
    "after another one": """
        async with tree("inner"):
            pass
        async with tree("outer"):
            await anyio.sleep_forever()
    """,
    "side by side": """
        await asyncio.gather(run("inner"), run("outer"))
    """,
}


def play(body: str, name: str, *delays: float) -> tuple[int, set[str]]:
    text = PROGRAM.format(
        signal=name,
        body=textwrap.indent(textwrap.dedent(body), " " * 4),
        delays=", ".join(map(str, delays)),
    )
    done = subprocess.run(
        [sys.executable, "-c", text], timeout=60, check=False, stdout=subprocess.PIPE, text=True
    )
    return done.returncode, set(done.stdout.splitlines())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize(("name", "status"), [("SIGINT", -signal.SIGINT), ("SIGTERM", 143)])
def test_a_signal_ends_every_tree_in_order(body: str, name: str, status: int) -> None:
    delay = 2.0 if "pass" in body else 0.5
    assert play(body, name, delay) == (status, {"- inner", "- outer"})


def test_a_signal_that_comes_twice_within_milliseconds_is_one_request_to_end() -> None:
    assert play(BODIES["nested"], "SIGINT", 0.5, 0.003) == (-signal.SIGINT, {"- inner", "- outer"})


def test_a_second_signal_still_ends_everything_immediately() -> None:
    status, lines = play(BODIES["nested"], "SIGINT", 0.5, 0.4)
    assert (status, lines) == (-signal.SIGINT, set())
