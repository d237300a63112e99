"""How actors end, as Ray's table tells it: each way that can be produced, and the rest from made-up rows."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
import pytest

from rayvisor._backends.ray.actors import UserActor, UserActorFactory
from rayvisor._backends.ray.adopted import Adoption
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.table import ActorState, actor_end, look_up, read_row
from rayvisor._runtime.children.actor_health import process_lost
from rayvisor.faults import Cause, FaultClass, Termination, classify
from rayvisor.specs import ActorOptions, AdoptStart, PlacementOptions

pytestmark = pytest.mark.ray

FATAL, INTENDED = FaultClass.FATAL, FaultClass.INTENDED


def mortal() -> Any:
    """A class that need not be imported where it runs."""

    class Mortal:
        def pid(self) -> int:
            return os.getpid()

        def leave(self, code: int) -> None:
            os._exit(code)

        def quit(self, code: int) -> None:
            import sys

            sys.exit(code)

        def resign(self) -> None:
            import ray

            ray.actor.exit_actor()  # type: ignore[no-untyped-call]

        def another(self) -> Any:
            import ray

            remote: Any = ray.remote
            return remote(type(self)).options(num_cpus=0).remote()

        def refuse(self) -> None:
            raise KeyError("mine")

    return Mortal


@pytest.fixture(params=[True, False], ids=["push", "ask"])
async def factory(cluster: RayCluster, request: pytest.FixtureRequest) -> AsyncIterator[UserActorFactory]:
    async with UserActorFactory(cluster, push=request.param) as factory:
        yield factory


def shot(actor: UserActor, pid: int) -> None:
    del actor
    os.kill(pid, signal.SIGKILL)


def killed_by_somebody(actor: UserActor, _: int) -> None:
    import ray

    ray.kill(actor.handle)


def without_its_group(_: UserActor, __: int) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    (key,) = [key for key, group in placement_group_table().items() if group["state"] == "CREATED"]
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))


def told(method: str, *args: object) -> Callable[[UserActor, int], object]:
    return lambda actor, _: getattr(actor.handle, method).remote(*args)


IN_A_GROUP = ActorOptions(num_cpus=0.1, placement=PlacementOptions(({"CPU": 0.1},)))
PLAIN = ActorOptions(num_cpus=0)
ROWS = {
    "SIGKILL": (shot, PLAIN, "SYSTEM_ERROR", FATAL, None),
    "os._exit": (told("leave", 3), PLAIN, "SYSTEM_ERROR", FATAL, None),
    "sys.exit": (told("quit", 2), PLAIN, "SYSTEM_ERROR", FATAL, 2),
    "exit_actor": (told("resign"), PLAIN, "INTENDED_USER_EXIT", INTENDED, 0),
    "ray.kill": (killed_by_somebody, PLAIN, "RAY_KILL", INTENDED, None),
    "no group": (without_its_group, IN_A_GROUP, "PlacementGroupRemoved", FATAL, None),
}


async def test_each_way_to_end_has_its_exit_type_class_and_node(factory: UserActorFactory) -> None:
    found: dict[str, tuple[str, FaultClass, int | None]] = {}
    rows = ROWS if factory.watch.push else ("SIGKILL", "exit_actor")

    async def play(how: str) -> None:
        end_it, options, *_ = ROWS[how]
        actor = await factory.create(mortal(), child=how, incarnation=1, options=options)
        await actor.ready(90)
        with pytest.raises(KeyError, match="mine"):
            await actor.call("refuse")  # an exception in a method is the caller's, and no end
        end_it(actor, await actor.call("pid"))
        end = await actor.ended()
        ending = process_lost(end, "serving")
        found[how] = (end.root.type, classify(ending), end.exit_code)
        assert end.node
        assert end.causes[0].type == "ActorDiedError"

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for how in rows:
                tasks.start_soon(play, how)
    assert found == {how: tuple(ROWS[how][2:]) for how in rows}


@pytest.mark.parametrize("factory", [True], indirect=True, ids=["push"])
async def test_an_actor_goes_with_its_owner_and_that_is_said(factory: UserActorFactory) -> None:
    owner = await factory.create(mortal(), child="owner", incarnation=1, options=PLAIN)
    await owner.ready(90)
    handle = await owner.call("another")
    adoption = Adoption(factory, "orphan", AdoptStart(actor=handle))
    actor = await adoption.come_up(1, 60, {})
    os.kill(await owner.call("pid"), signal.SIGKILL)
    with anyio.fail_after(60):
        end = await actor.ended()
    assert end.root.type == "OWNER_DIED"
    assert classify(process_lost(end, "serving")) is FATAL


async def test_what_ray_restarts_is_told_with_how_its_last_life_ended(factory: UserActorFactory) -> None:
    import ray

    remote: Any = ray.remote
    handle = remote(mortal()).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    actor = await Adoption(factory, "child", AdoptStart(actor=handle)).come_up(1, 60, {})
    os.kill(await actor.call("pid"), signal.SIGKILL)
    with anyio.fail_after(60):
        end = await actor.ended()
    assert end.restarted_by_ray
    assert end.root.type == "SYSTEM_ERROR"
    ray.kill(handle)


def row(death: Mapping[str, Any] | None = None) -> Any:
    """A row of Ray's table, as Ray would send it."""
    from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
    from ray.core.generated import gcs_pb2

    table: Any = gcs_pb2.ActorTableData  # type: ignore[attr-defined]  # made by protobuf's compiler
    data = table(state=table.ActorState.Value("DEAD"))
    data.address.ip_address = "10.0.0.7"
    ParseDict(death or {}, data.death_cause)
    return read_row(data)


DIED = "actorDiedErrorContext"
NODE = {"reason": "AUTOSCALER_DRAIN_PREEMPTED", "reasonMessage": "the spot node was taken"}
MADE_UP: dict[str, tuple[Any, str, FaultClass, dict[str, Any]]] = {
    "memory monitor": (
        row({"oomContext": {"errorMessage": "killed due to the node running low on memory"}}),
        "OutOfMemoryError", FATAL, {"out_of_memory": True, "signal": 9},
    ),
    "preempted node": (
        row({DIED: {"reason": "NODE_DIED", "errorMessage": "its node has died", "nodeDeathInfo": NODE}}),
        "NODE_DIED", FATAL, {"node_died": True, "preempted": True},
    ),
    "lost node": (
        row({DIED: {"reason": "NODE_DIED", "errorMessage": "its node has died"}}),
        "NODE_DIED", FATAL, {"node_died": True, "preempted": False},
    ),
    "environment": (
        row({"runtimeEnvFailedContext": {"errorMessage": "no such package"}}),
        "RuntimeEnvSetupError", FATAL, {},
    ),
    "unschedulable": (
        row({"actorUnschedulableContext": {"errorMessage": "its node is gone"}}),
        "ActorUnschedulableError", FATAL, {},
    ),
    "out of scope": (
        row({DIED: {"reason": "OUT_OF_SCOPE", "errorMessage": "nobody holds it"}}),
        "OUT_OF_SCOPE", INTENDED, {"intended": True},
    ),
    "killed for memory": (
        row({DIED: {"reason": "WORKER_DIED", "errorMessage": "The actor is dead because its worker process "
                      "has died. Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: low on memory."}}),
        "NODE_OUT_OF_MEMORY", FATAL, {"out_of_memory": True},
    ),
    "no word at all": (row(), "ActorDiedError", FATAL, {}),
}  # fmt: skip


@pytest.mark.parametrize("how", MADE_UP)
def test_how_an_actor_ended_is_read_from_its_row(how: str) -> None:
    data, root, fault_class, facts = MADE_UP[how]
    assert data.state is ActorState.DEAD
    end = actor_end(data, None)
    assert (end.root.type, classify(process_lost(end, "serving"))) == (root, fault_class)
    assert end.node == "10.0.0.7"
    assert {name: getattr(end, name) for name in facts} == facts


async def test_a_worker_that_ray_has_not_noted_is_read_off_the_actor_s_row(cluster: RayCluster) -> None:
    del cluster
    from ray import ActorID

    assert look_up(ActorID(os.urandom(16))) is None
    assert actor_end(row(), Termination(causes=(Cause("A", ""), Cause("B", "")))).root == Cause("B", "")
