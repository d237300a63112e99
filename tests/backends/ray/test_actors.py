from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from rayvisor._backends.ray.actors import UserActorFactory
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._core.protocol.links import HostGoneError
from rayvisor.faults import Cause
from rayvisor.specs import ActorOptions, PlacementOptions
from tests.waiting import until

pytestmark = pytest.mark.ray


def plain_class() -> Any:
    class Counter:
        def __init__(self, start: int = 0, *, fail: str = "", leave: str = "") -> None:
            if fail:
                raise ValueError(fail)
            self.value = start
            self.leave = leave

        def add(self, amount: int) -> int:
            self.value += amount
            return self.value

        def where(self) -> tuple[int, bool]:
            return os.getpid(), threading.current_thread() is threading.main_thread()

        def nap(self, seconds: float) -> None:
            import time

            time.sleep(seconds)

        def refuse(self) -> None:
            raise KeyError("refused")

        def exit(self, code: int) -> None:
            os._exit(code)

        def __ray_shutdown__(self) -> None:
            if self.leave:
                Path(self.leave).write_text("left in order", encoding="utf-8")

    return Counter


@pytest.fixture(params=[True, False], ids=["push", "probe"])
async def actors(cluster: RayCluster, request: pytest.FixtureRequest) -> AsyncIterator[UserActorFactory]:
    async with UserActorFactory(cluster, push=request.param) as factory:
        yield factory


async def test_an_actor_keeps_its_main_thread_and_answers_calls(actors: UserActorFactory) -> None:
    actor = await actors.create(plain_class(), (3,), child="router", incarnation=1)
    await actor.ready(90)
    assert await actor.call("add", (4,)) == 7
    assert (await actor.call("where"))[1]
    with pytest.raises(KeyError, match="refused"):
        await actor.call("refuse")
    assert await actor.call("add", (1,), timeout=60) == 8


async def test_the_death_of_an_actor_is_learnt_from_outside_with_its_cause(actors: UserActorFactory) -> None:
    actor = await actors.create(plain_class(), child="router", incarnation=1)
    await actor.ready(90)
    pid, _ = await actor.call("where")
    waiting = asyncio.create_task(actor.ended())
    os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(60):
        end = await waiting
    assert end.root.type == "SYSTEM_ERROR"
    assert not end.intended
    with pytest.raises(HostGoneError):
        await actor.call("add", (1,))


async def test_a_failing_init_is_told_with_the_exception_behind_it(actors: UserActorFactory) -> None:
    actor = await actors.create(plain_class(), kwargs={"fail": "port=-1"}, child="router", incarnation=1)
    with pytest.raises(HostGoneError) as gone:
        await actor.ready(90)
    assert gone.value.end.init_failed
    assert gone.value.end.root == Cause("ValueError", "port=-1")
    with anyio.fail_after(60):
        assert (await actor.ended()).init_failed


async def test_terminating_lets_the_actor_leave_in_order(actors: UserActorFactory, tmp_path: Path) -> None:
    note = tmp_path / "note"
    actor = await actors.create(plain_class(), kwargs={"leave": str(note)}, child="router", incarnation=1)
    await actor.ready(90)
    end = await actor.terminate(60)
    assert end is not None
    assert end.intended
    await until(note.exists)  # Ray calls an actor dead when it begins to leave


async def test_a_busy_actor_outlasts_its_grace_and_is_killed(actors: UserActorFactory) -> None:
    actor = await actors.create(plain_class(), child="router", incarnation=1)
    await actor.ready(90)
    busy = asyncio.ensure_future(actor.call("nap", (60,)))
    await asyncio.sleep(0)
    assert await actor.terminate(0.3) is None
    assert await actor.kill()
    assert (await actor.ended()).intended
    with pytest.raises(HostGoneError) as gone:
        await busy
    assert gone.value.end.intended


async def test_a_call_that_takes_too_long_is_named(actors: UserActorFactory) -> None:
    actor = await actors.create(plain_class(), child="router", incarnation=1)
    await actor.ready(90)
    with pytest.raises(RayCallTimeout, match=r"router/1\.nap was not answered within 0\.1 s"):
        await actor.call("nap", (2,), timeout=0.1)


async def test_a_class_made_remote_by_its_author_is_never_restarted_by_ray(actors: UserActorFactory) -> None:
    import ray

    remote: Any = ray.remote
    actor = await actors.create(
        remote(max_restarts=-1, max_task_retries=-1)(plain_class()), child="router", incarnation=1
    )
    await actor.ready(90)
    with pytest.raises(HostGoneError):
        await actor.call("exit", (1,))
    with anyio.fail_after(60):
        await actor.ended()


async def test_what_the_cluster_lacks_is_said(actors: UserActorFactory) -> None:
    options = ActorOptions(num_cpus=0, num_gpus=64)
    actor = await actors.create(plain_class(), child="router", incarnation=1, options=options)
    with pytest.raises(RayCallTimeout, match="no node has GPU=64"):
        await actor.ready(0.5)


async def test_a_placement_group_is_the_childs_reused_by_its_incarnations_and_removed_at_the_end(
    cluster: RayCluster,
) -> None:
    from ray.util import placement_group_table

    def groups() -> dict[str, str]:
        return {key: str(entry["state"]) for key, entry in placement_group_table().items()}

    before = set(groups())
    options = ActorOptions(num_cpus=1, placement=PlacementOptions(({"CPU": 1.0, "slot": 1.0},)))
    async with UserActorFactory(cluster) as factory:
        first = await factory.create(plain_class(), child="router", incarnation=1, options=options)
        await first.ready(90)
        made = set(groups()) - before
        assert len(made) == 1
        await first.kill()
        second = await factory.create(plain_class(), child="router", incarnation=2, options=options)
        await second.ready(90)
        assert set(groups()) - before == made
        await factory.end_child("router", 60)
        await until(lambda: all(groups()[key] == "REMOVED" for key in made))
        third = await factory.create(plain_class(), child="router", incarnation=3, options=options)
        await third.ready(90)
        assert len(set(groups()) - before) == 2
    await until(lambda: all(groups()[key] == "REMOVED" for key in set(groups()) - before))
