"""Trees of real actors and pools: who is started and ended when, and what goes on meanwhile."""

from __future__ import annotations

import atexit
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.process.identity import alive, identify
from rayvisor._core.protocol.wire import ProcessId
from rayvisor.testing import wait_for_state
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]

PROMPT = "Once upon a time"
GREEDY = {"max_tokens": 60, "temperature": 0.0}


class Member:
    """An actor that writes down when it came up, and, when it is asked to end, when it did."""

    def __init__(self, diary: str, name: str, seconds: float = 0.0) -> None:
        self.name = name
        self.diary = Path(diary)
        self._write("starting")
        time.sleep(seconds)
        atexit.register(self._write, "ended")
        self._write("up")

    def _write(self, what: str) -> None:
        with self.diary.open("a") as file:
            file.write(f"{time.monotonic()} {what} {self.name} {os.getpid()}\n")

    def pid(self) -> int:
        return os.getpid()


class Choosy:
    """An actor that runs only if its file is there, and says how the one before it ended."""

    def __init__(self, wanted: str, *, predecessor: rv.Exit | None = None) -> None:
        if not Path(wanted).exists():
            raise rv.IgnoreStart("not wanted")
        self.told = predecessor

    def predecessor(self) -> str:
        return (
            "" if self.told is None else f"{self.told.kind} {self.told.fault and self.told.fault.root.type}"
        )

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def member(diary: Path, name: str, seconds: float = 0.0, **options: Any) -> rv.ChildSpec:
    given = {"num_cpus": 0, "shutdown": 60.0, **options}
    return rv.actor(name, Member, args=[str(diary), name, seconds], **given)


def pool(name: str, **options: Any) -> rv.ChildSpec:
    arguments = {"tokens_per_second": 60.0}
    return rv.engine_pool(name, engine="sim", engine_args=arguments, num_cpus=0, **options)


def entries(diary: Path) -> list[tuple[float, str, str, int]]:
    if not diary.exists():
        return []
    fields = [line.split() for line in diary.read_text().splitlines()]
    return sorted((float(at), what, name, int(pid)) for at, what, name, pid in fields)


def words(diary: Path) -> list[str]:
    return [f"{what} {name}" for _, what, name, _ in entries(diary)]


def _gone(process: ProcessId) -> bool:
    return not alive(process)


async def test_a_router_and_two_workers_restart_in_order(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    spec = rv.SupervisorSpec(
        strategy=rv.Strategy.REST_FOR_ONE,
        intensity=2,
        period=600.0,
        children=[member(diary, name) for name in ("router", "one", "two")],
    )
    async with rv.Supervisor(spec) as sup:
        up = ["up router", "up one", "up two"]
        assert [word for word in words(diary) if word.startswith("up")] == up
        first = {name: pid for _, what, name, pid in entries(diary) if what == "up"}
        processes = {name: identify(pid) for name, pid in first.items()}

        os.kill(first["one"], signal.SIGKILL)
        # What has not answered yet is not asked to end, but killed.
        await wait_for_state(sup, "two", "ALIVE.SERVING", incarnation=2, timeout=60)
        # The second worker was asked to end before the first one was started again; the router went on.
        after = words(diary)[len(first) * 2 :]
        assert after == ["ended two", "starting one", "up one", "starting two", "up two"]
        router = processes["router"]
        assert router is not None
        assert alive(router)

        size = len(words(diary))
        os.kill(first["router"], signal.SIGKILL)
        await until(lambda: words(diary).count("up two") == 3)
        expected = ["ended two", "ended one"]
        expected += [f"{what} {name}" for name in ("router", "one", "two") for what in ("starting", "up")]
        assert words(diary)[size:] == expected
        for process in processes.values():
            assert process is not None
            await until(partial(_gone, process))


async def test_two_pools_under_one_for_all_restart_together_and_lose_no_request(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    pools = rv.SupervisorSpec(
        strategy=rv.Strategy.ONE_FOR_ALL,
        intensity=1,
        period=600.0,
        # Its first death is one too many for a pool, so it is the pool's supervisor that ends.
        children=[
            pool(name, intensity=0, period=600.0, backoff=rv.Backoff(maximum=0.0, initial=0.0))
            for name in "ab"
        ],
    )
    spec = rv.SupervisorSpec(children=[rv.subtree("pools", pools), member(diary, "beside")])
    supervisor = rv.Supervisor(spec)
    async with supervisor as sup:
        schedulers = [sup["pools/a"], sup["pools/b"]]
        expected = (await schedulers[0].generate(PROMPT, GREEDY).result()).text
        engines = {
            name: [process for role, process in sup.processes(f"pools/{name}/1") if role == "engine"]
            for name in "ab"
        }
        watch = sup.watch()
        texts: list[str] = []

        async def read(scheduler: rv.EnginePool) -> None:
            texts.append("".join([chunk.text async for chunk in scheduler.generate(PROMPT, GREEDY)]))

        before = [scheduler.stats().tokens for scheduler in schedulers]
        async with anyio.create_task_group() as tasks:
            for scheduler in schedulers:
                tasks.start_soon(read, scheduler)
                tasks.start_soon(read, scheduler)
            await until(
                lambda: all(
                    scheduler.stats().tokens >= start + 20
                    for scheduler, start in zip(schedulers, before, strict=True)
                )
            )
            os.kill(engines["b"][0].pid, signal.SIGKILL)
        assert texts == [expected] * 4
        assert [sup["pools/a"], sup["pools/b"]] == schedulers
        assert not any(alive(process) for processes in engines.values() for process in processes)
        await until(lambda: sup.engine_info("pools/b/1") is not None)
        assert words(diary) == ["starting beside", "up beside"]
    moves = [
        (x.path, x.state)
        async for x in watch
        if isinstance(x, r.SupervisorStateChanged) and x.path.startswith("pools/") and x.state != "stopping"
    ]
    assert moves[:6] == [
        ("pools/b", "ended"),
        ("pools/a", "ended"),
        ("pools/a", "starting"),
        ("pools/a", "running"),
        ("pools/b", "starting"),
        ("pools/b", "running"),
    ]


async def test_independent_restarts_overlap_and_calls_are_answered_meanwhile(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    slow = 3.0
    spec = rv.SupervisorSpec(
        intensity=5, children=[member(diary, "x", slow), member(diary, "y", slow)], max_concurrent_starts=2
    )
    async with rv.Supervisor(spec) as sup:
        for _, what, _, pid in entries(diary):
            if what == "up":
                os.kill(pid, signal.SIGKILL)
        await until(lambda: words(diary).count("starting x") + words(diary).count("starting y") == 4)
        began = time.monotonic()
        answers = 0
        refusals: set[type[Exception]] = set()
        while words(diary).count("up x") + words(diary).count("up y") == 2:
            lines = await sup.which_children()
            assert {line.id for line in lines} == {"x", "y"}
            assert (await sup.count_children()).specs == 2
            with pytest.raises((rv.ChildRestartingError, rv.ChildRunningError)) as refused:
                await sup.delete_child("x")
            refusals.add(refused.type)
            answers += 1
            await anyio.sleep(0.01)
        assert answers > 20
        assert rv.ChildRestartingError in refusals  # the last time it may have come up meanwhile
        await until(lambda: words(diary).count("up x") + words(diary).count("up y") == 4)
        assert time.monotonic() - began < 2 * slow
    times = {word: at for at, word in zip((at for at, *_ in entries(diary)), words(diary), strict=True)}
    # Each began before the other one was up.
    assert max(times["starting x"], times["starting y"]) < min(times["up x"], times["up y"])


async def test_children_of_every_kind_share_a_tree_and_a_pool_that_its_group_restarts_loses_nothing(
    tmp_path: Path,
) -> None:
    diary = tmp_path / "diary"

    async def tick() -> None:
        await anyio.sleep_forever()

    def more() -> rv.SupervisorSpec:
        return rv.SupervisorSpec(children=[rv.coroutine("inner", tick), member(diary, "deep")])

    common: dict[str, Any] = {"restart": rv.Restart.TRANSIENT}
    spec = rv.SupervisorSpec(
        strategy=rv.Strategy.ONE_FOR_ALL,
        intensity=3,
        children=[
            rv.coroutine("ticker", tick, **common),
            member(diary, "router", **common),
            pool("llm", **common),
            rv.subtree("more", more, **common),
        ],
    )
    async with rv.Supervisor(spec) as sup:
        assert await sup.count_children() == (4, 4, 2, 2)
        expected = (await sup["llm"].generate(PROMPT, GREEDY).result()).text
        texts: list[str] = []
        parts: list[str] = []

        async def read(count: int) -> None:
            async for chunk in sup["llm"].generate(PROMPT, GREEDY):
                parts.append(chunk.text)
                if len(parts) == count:
                    # A sibling dies: the group, with the pool's supervisor, is ended and started again.
                    os.kill(await sup["router"].call("pid"), signal.SIGKILL)
            texts.append("".join(parts))

        await read(5)
        assert texts == [expected]
        await until(lambda: words(diary).count("up deep") == 2)
        with anyio.fail_after(90):
            while (await sup.count_children()).active < 4:  # noqa: ASYNC110 - it is asked as a user would
                await anyio.sleep(0.01)
        assert {line.id: line.incarnation for line in await sup.which_children()} == {
            "ticker": 2,
            "router": 2,
            "llm": 2,
            "more": 2,
        }


async def test_an_actor_may_choose_not_to_run_and_is_told_how_the_last_one_ended(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    supervisor = rv.Supervisor(
        rv.SupervisorSpec(children=[rv.actor("choosy", Choosy, args=[str(wanted)], num_cpus=0)])
    )
    watch = supervisor.watch()
    async with supervisor as sup:
        assert (await sup.count_children()).active == 0
        wanted.touch()
        await sup.restart_child("choosy")
        assert await sup["choosy"].call("predecessor") == ""
        with pytest.raises(rv.ChildUnavailableError):
            await sup["choosy"].call("die")
        assert (
            await sup["choosy"].options(idempotent=True, timeout=60).call("predecessor")
            == "fault SYSTEM_ERROR"
        )
    faults = [x.fault async for x in watch if isinstance(x, r.FaultSeen)]
    assert [(x.child, x.incarnation) for x in faults] == [("choosy", 2)]
