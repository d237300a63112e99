"""Actors that somebody else made, on a real Ray."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]


class Trainer:
    """An actor of somebody else's."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> int:
        self.steps += 1
        return self.steps

    def pid(self) -> int:
        return os.getpid()

    def main(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    def resign(self) -> None:
        import ray

        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


Make = Callable[..., Any]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make an actor as somebody else would; it is gone after the test."""
    import ray

    made: list[Any] = []

    def make(**options: Any) -> Any:
        remote: Any = ray.remote
        handle = remote(Trainer).options(num_cpus=0, **options).remote()
        made.append(handle)
        return handle

    yield make
    for handle in made:
        ray.kill(handle)


def tree(*children: rv.ChildSpec, **flags: Any) -> rv.Supervisor:
    return rv.Supervisor(rv.SupervisorSpec(children=children, **flags), handle_signals=False)


async def leaf(watch: Any, child: str, wanted: str, incarnation: int = 0) -> r.StateChanged:
    """Wait until a child has reached a leaf."""
    async for x in watch:
        if not isinstance(x, r.StateChanged) or x.child != child or x.incarnation < incarnation:
            continue
        if x.after.endswith(f".{wanted}"):
            return x
    raise AssertionError("the tree has ended")


async def within(seconds: float, work: Awaitable[Any]) -> Any:
    with anyio.fail_after(seconds):
        return await work


async def test_an_actor_that_ray_restarts_is_observed_recorded_and_not_counted(make: Make) -> None:
    handle = make(max_restarts=-1, max_task_retries=-1)
    # No restart is within this intensity: what Ray does is not counted.
    supervisor = tree(rv.adopt("trainer", handle), intensity=0)
    everything = supervisor.watch()
    async with supervisor as sup:
        trainer, watch = sup["trainer"], sup.watch()
        pid = await trainer.call("pid")
        assert await trainer.call("main")
        os.kill(pid, signal.SIGKILL)
        away = await within(60, leaf(watch, "trainer", "STARTING"))
        back = await within(60, leaf(watch, "trainer", "SERVING"))
        assert (away.incarnation, back.incarnation) == (2, 2)
        assert await trainer.call("pid") != pid
        assert trainer.handle() == handle
    assert await handle.step.remote() == 1  # the tree has ended, and left it alone
    records = [x async for x in everything]
    assert not [x for x in records if isinstance(x, r.CleanupUnverified)]
    (fault,) = [x.fault for x in records if isinstance(x, r.FaultSeen)]
    assert (fault.fault_class, fault.incarnation) == (rv.FaultClass.FATAL, 1)
    # An actor that ends before the subscription stands may have no more said of its end than that it has.
    assert fault.root.type in {"SYSTEM_ERROR", "ActorDiedError"}
    (decided,) = [x for x in records if isinstance(x, r.DecisionMade)]
    assert (decided.decision, decided.restarts) == ("observe", 0)


def _serves(sup: rv.Supervisor, incarnation: int) -> bool:
    node = sup.status("trainer")
    return (node.incarnation, node.leaf) == (incarnation, "SERVING")


async def test_when_ray_has_given_up_the_next_one_is_made(make: Make) -> None:
    first = make(max_restarts=1)
    told: list[rv.Exit | None] = []

    def another(predecessor: rv.Exit | None = None) -> Any:
        told.append(predecessor)
        return make(max_restarts=0)

    async with tree(rv.adopt("trainer", first, make=another), intensity=1) as sup:
        for incarnation in (1, 2, 3):
            if incarnation > 1:
                await until(partial(_serves, sup, incarnation))
            assert (sup["trainer"].handle() == first) == (incarnation < 3)
            if incarnation < 3:
                os.kill(await sup["trainer"].options(idempotent=True).call("pid"), signal.SIGKILL)
    (why,) = told
    assert why is not None
    assert why.fault is not None
    assert why.fault.root.type == "SYSTEM_ERROR"


async def test_one_that_nobody_can_make_again_is_a_permanent_fault_root_cause_first(make: Make) -> None:
    handle = make(max_restarts=0)

    async def run() -> None:
        async with tree(rv.adopt("trainer", handle), intensity=5) as sup:
            os.kill(await sup["trainer"].call("pid"), signal.SIGKILL)
            await anyio.sleep_forever()

    with pytest.raises(rv.SupervisorGaveUpError, match=r"SYSTEM_ERROR.*PERMANENT") as raised:
        await run()
    fault = raised.value.fault
    assert fault is not None
    assert fault.causes[0].type == "CannotBeRecreated"
    assert "make=" in fault.causes[0].message


async def test_a_group_restart_begins_a_new_life_of_an_actor_that_ray_may_restart(make: Make) -> None:
    handle = make(max_restarts=-1)
    kept = make(max_restarts=0)
    children = [rv.adopt("kept", kept), rv.adopt("trainer", handle), rv.actor("own", Trainer, num_cpus=0)]
    async with tree(*children, strategy=rv.Strategy.ONE_FOR_ALL, intensity=1) as sup:
        old = {name: await sup[name].call("pid") for name in ("kept", "trainer", "own")}
        os.kill(old["own"], signal.SIGKILL)
        await within(60, leaf(sup.watch(), "own", "SERVING", 2))
        new = {name: await sup[name].call("pid") for name in ("kept", "trainer", "own")}
        assert {name for name in old if old[name] == new[name]} == {"kept"}  # nobody could make it again
        assert sup.status("trainer").incarnation == 2
        assert sup["trainer"].handle() == handle


async def test_a_detached_actor_is_found_by_its_name_and_outlives_the_tree(make: Make) -> None:
    import ray

    make(name="registry", namespace="prod", lifetime="detached")
    spec = rv.adopt("registry", name="registry", namespace="prod", start_timeout=30)
    async with tree(spec) as sup:
        pid = await sup["registry"].call("pid")
    found: Any = ray.get_actor("registry", namespace="prod")
    assert await found.pid.remote() == pid


async def test_a_name_that_is_nobodys_is_one_clear_error() -> None:
    with pytest.raises(rv.StartFailedError, match=r"an actor named 'nobody'.*is it detached"):
        await tree(rv.adopt("x", name="nobody", start_timeout=0.5)).__aenter__()


async def test_a_restart_by_hand_is_a_new_life_and_killing_at_the_end_is_asked_for(make: Make) -> None:
    import ray

    handle = make(max_restarts=-1)
    async with tree(rv.adopt("trainer", handle, on_end="kill")) as sup:
        pid = await sup["trainer"].call("pid")
        spec = rv.adopt("other", make(max_restarts=-1))
        await sup.start_child(spec)
        other = await sup["other"].call("pid")
        await sup.restart("other")
        assert await sup["other"].call("pid") != other
        assert await sup["trainer"].call("pid") == pid
    with pytest.raises(ray.exceptions.RayActorError):
        await within(60, handle.pid.remote())


async def test_an_actor_that_leaves_by_itself_ends_normally(make: Make) -> None:
    handle = make(max_restarts=-1)
    spec = rv.adopt("trainer", handle, restart=rv.Restart.TRANSIENT)
    async with tree(spec) as sup:
        watch = sup.watch()
        handle.resign.remote()
        await within(60, leaf(watch, "trainer", "COMPLETED"))
