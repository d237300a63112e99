"""Probe, pause, resume and drain of a user's actor, and Ray's not reaching it, on a real Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from tests.adopt.cutting import cut
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]


class Worker:
    """An actor that writes down what it is asked to do."""

    def __init__(self, diary: str) -> None:
        self.diary = Path(diary)
        self.write("made")

    def write(self, what: str) -> None:
        with self.diary.open("a") as file:
            file.write(f"{what}\n")

    def pid(self) -> int:
        return os.getpid()

    def ping(self) -> bool:
        return not (self.diary.parent / "ill").exists()

    def nap(self, seconds: float) -> None:
        self.write("naps")
        time.sleep(seconds)

    def hold(self) -> None:
        self.write("held")

    def go_on(self) -> None:
        self.write("gone on")

    def finish(self) -> None:
        self.write("finished")


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


@pytest.fixture
def handle(diary: Path) -> Iterator[Any]:
    """An actor of somebody else's."""
    import ray

    remote: Any = ray.remote
    made = remote(Worker).options(num_cpus=0, max_restarts=-1).remote(str(diary))
    yield made
    ray.kill(made)


def lines(diary: Path) -> list[str]:
    return diary.read_text().splitlines()


def worker(diary: Path, **options: Any) -> rv.ChildSpec:
    return rv.actor("worker", Worker, args=[str(diary)], num_cpus=0, **options)


def tree(*children: rv.ChildSpec) -> rv.Supervisor:
    return rv.Supervisor(rv.SupervisorSpec(children=children, intensity=3), handle_signals=False)


async def test_holds_are_told_in_order_also_to_the_next_incarnation_and_calls_wait(diary: Path) -> None:
    async def go_on(handle: Any) -> None:
        await handle.go_on.remote()

    spec = worker(diary, pause="hold", resume=go_on, drain=lambda handle: handle.finish.remote(), shutdown=30)
    async with tree(spec) as sup:
        pid = await sup["worker"].call("pid")
        await sup.pause("worker")
        assert lines(diary) == ["made", "held"]
        with pytest.raises(rv.ChildUnavailableError, match="paused"):
            await sup["worker"].options(timeout=0.1).call("pid")
        os.kill(pid, 9)
        await until(lambda: lines(diary) == ["made", "held", "made", "held"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sup["worker"].call, "write", "called")
            await anyio.wait_all_tasks_blocked()
            await sup.resume("worker")
        assert sorted(lines(diary)[4:]) == ["called", "gone on"]
    assert lines(diary)[-1] == "finished"


async def test_a_hook_that_fails_is_recorded_and_holds_nothing_up(diary: Path) -> None:
    async with tree(worker(diary, pause="nonsense")) as sup:
        watch = sup.watch()
        await sup.pause("worker")
        assert sup.status("worker").leaf == "REQUESTED"
    (failed,) = [x async for x in watch if isinstance(x, r.HookFailed)]
    assert (failed.child, failed.hook) == ("worker", "pause")
    assert "nonsense" in failed.error


async def test_missed_probes_make_it_suspect_then_end_it_and_the_cause_is_the_probe_s(diary: Path) -> None:
    ill = diary.parent / "ill"
    spec = worker(diary, probe="ping", probe_interval=0.05, failure_threshold=(2, 3), stall_after=1.0)
    async with tree(spec) as sup:
        watch = sup.watch()
        ill.touch()
        await until(lambda: sup.status("worker").leaf == "SUSPECT")
        ill.unlink()
        await until(lambda: sup.status("worker").leaf == "SERVING")
        assert sup.status("worker").incarnation == 1
        ill.touch()
        await until(lambda: sup.status("worker").leaf == "STARTING")  # it serves once a probe was answered
        ill.unlink()
        await until(lambda: sup.status("worker").leaf == "SERVING")
        assert sup.status("worker").incarnation == 2
    faults = [x.fault async for x in watch if isinstance(x, r.FaultSeen)]
    assert [str(x.fault_class) for x in faults] == ["TRANSIENT", "TRANSIENT", "FATAL"]
    assert faults[-1].source == "probe"
    assert [x.type for x in faults[-1].causes] == ["ActorStalled", "ProbeFailed"]


async def test_an_adopted_actor_that_misses_its_probes_is_restarted_by_ray(diary: Path, handle: Any) -> None:
    ill = diary.parent / "ill"
    spec = rv.adopt(
        "worker", handle, probe="ping", probe_interval=0.05, failure_threshold=(2, 3), stall_after=0.5
    )
    async with tree(spec) as sup:
        pid = await sup["worker"].call("pid")
        ill.touch()
        await until(lambda: sup.status("worker").incarnation == 2)
        ill.unlink()
        await until(lambda: sup.status("worker").leaf == "SERVING")
        assert await sup["worker"].call("pid") != pid
    assert lines(diary) == ["made", "made"]


async def test_an_actor_that_ray_cannot_reach_is_suspect_and_not_dead(handle: Any, diary: Path) -> None:
    async with tree(rv.adopt("worker", handle)) as sup:
        watch = sup.watch()
        pid = await sup["worker"].call("pid")
        napping: list[BaseException] = []

        async def nap() -> None:
            try:
                await sup["worker"].call("nap", 1.0)
            except rv.ChildUnavailableError as error:
                napping.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(nap)
            await until(lambda: "naps" in lines(diary))
            assert cut(pid)
        assert str(napping[0]).startswith("ActorUnavailableError: ")
        assert str(napping[0]).endswith("'worker' was lost during nap(), which it may have carried out")
        await until(lambda: sup.status("worker").leaf == "SERVING")
        assert await sup["worker"].call("pid") == pid
    records = [x async for x in watch]
    events = [x.event for x in records if isinstance(x, r.StateChanged)]
    assert events[:2] == ["suspect", "clear"]
    assert [str(x.fault.fault_class) for x in records if isinstance(x, r.FaultSeen)] == ["TRANSIENT"]
