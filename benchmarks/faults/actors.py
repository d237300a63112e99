"""Rows about users' actors."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import psutil

import rayvisor as rv
from benchmarks.faults.rows import Row
from benchmarks.faults.trial import Trial
from benchmarks.tree import Tree
from rayvisor.faults import FaultClass
from rayvisor.specs import PlacementOptions

__all__ = ["ACTOR_ROWS"]

FATAL, PERMANENT, TRANSIENT = FaultClass.FATAL, FaultClass.PERMANENT, FaultClass.TRANSIENT


class Worker:
    """An actor that can end in several ways."""

    def pid(self) -> int:
        """Return the pid of its process."""
        return os.getpid()

    def nap(self, seconds: float) -> None:
        """Block for a while."""
        time.sleep(seconds)

    def leave(self) -> None:
        """Exit the process abruptly."""
        os._exit(3)

    def resign(self) -> None:
        """Exit with Ray's exit_actor()."""
        import ray

        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


class Fails:
    """An actor whose ``__init__`` fails once a file exists."""

    def __init__(self, file: str) -> None:
        if Path(file).exists():
            raise LookupError("the card is missing")

    def pid(self) -> int:
        """Return the pid of its process."""
        return os.getpid()


class Hungry:
    """An actor that needs more memory than its limit."""

    def __init__(self) -> None:
        # A Ray worker maps the object store as well, whose size depends on the machine.
        most = psutil.Process().memory_info().vms + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        self.memory = bytearray(1 << 32)


class Timid:
    """An actor that records its creation, and whose first probe is slow."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        with (self.folder / "made").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def prove(self) -> bool:
        """Succeed; slowly the first time."""
        asked = self.folder / "asked"
        if not asked.exists():
            asked.touch()
            time.sleep(2.0)
        return True


async def pid_of(tree: Tree, child: str = "worker") -> int:
    """Return the pid of an actor."""
    return int(await tree.supervisor[child].call("pid"))


async def quits(trial: Trial, method: str) -> None:
    """Run a method that ends the actor."""
    async with trial.tree(rv.actor("worker", Worker)) as tree:
        await pid_of(tree)
        trial.inject()
        with anyio.move_on_after(30):
            with contextlib.suppress(Exception):  # a call on a dying actor may fail in any way
                await tree.supervisor["worker"].call(method)
        await trial.wait_recovered(tree, "worker")
        trial.observe("worker")


async def signalled(trial: Trial) -> None:
    """Kill the actor."""
    async with trial.tree(rv.actor("worker", Worker)) as tree:
        pid = await pid_of(tree)
        trial.inject()
        os.kill(pid, signal.SIGKILL)
        await trial.wait_recovered(tree, "worker")
        trial.observe("worker")


async def never_made(trial: Trial, cls: type, **options: Any) -> None:
    """Start an actor that can never start."""
    await trial.run_failing_start(rv.actor("worker", cls, **options), intensity=0)
    trial.observe("worker")


async def fails_from_now_on(trial: Trial) -> None:
    """Make the start of a configuration fail that has served before, which is retried."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "broken"
        spec = rv.actor("worker", Fails, args=(str(file),), backoff=rv.Backoff(initial=0.3, maximum=0.3))
        async with trial.tree(spec, period=1000.0) as tree:
            pid = await pid_of(tree)
            file.touch()
            os.kill(pid, signal.SIGKILL)
            watch = tree.until(rv.records.FaultSeen, lambda x: "card is missing" in str(x.fault.root))
            trial.at = (await watch).at - 0.000_001
            file.unlink()
            await trial.wait_recovered(tree, "worker")
            trial.observe("worker")


async def always_fails(trial: Trial) -> None:
    """Start an actor that fails and has never served."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "broken"
        file.touch()
        await never_made(trial, Fails, args=(str(file),))


async def unplugged_at_bring_up(trial: Trial) -> None:
    """Break Ray's connection to the actor while it starts: it is probed again and created exactly once."""
    with TemporaryDirectory() as folder:
        made, asked = Path(folder) / "made", Path(folder) / "asked"

        async def unplug() -> None:
            while not asked.exists():  # noqa: ASYNC110 - another process creates the file
                await anyio.sleep(0.02)
            trial.inject()
            cut(int(made.read_text()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(unplug)
            async with trial.tree(rv.actor("worker", Timid, args=(folder,), probe="prove")) as tree:
                await trial.wait_recovered(tree, "worker")
                trial.observe("worker")
        times = len(made.read_text().splitlines())
        if times != 1:
            trial.observed.problem = f"it was created {times} times"


async def unplugged(trial: Trial) -> None:
    """Break Ray's connection to the actor during a call: it is suspect, not dead."""
    async with trial.tree(rv.actor("worker", Worker)) as tree:
        pid = await pid_of(tree)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ignored, tree.supervisor["worker"].call("nap", 1.0))
            await anyio.sleep(0.3)
            trial.inject()
            cut(pid)
        await trial.wait_recovered(tree, "worker")
        trial.observe("worker")
        if await pid_of(tree) != pid:
            trial.observed.problem = "it was recreated"


async def _ignored(call: Awaitable[object]) -> None:
    """Await a call that may fail because its connection breaks."""
    with contextlib.suppress(rv.ChildUnavailableError):
        await call


def cut(pid: int) -> None:
    """Shut down the connections between this process and another one; Ray opens new ones."""
    theirs = {(each.laddr, each.raddr) for each in psutil.Process(pid).net_connections("inet")}
    for each in psutil.Process().net_connections("inet"):
        if (each.raddr, each.laddr) in theirs:
            with socket.socket(fileno=socket.dup(each.fd)) as connection:
                connection.shutdown(socket.SHUT_RDWR)


async def without_its_group(trial: Trial) -> None:
    """Remove the placement group of a running actor."""
    import ray
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    placement = PlacementOptions(bundles=({"CPU": 1.0},))
    async with trial.tree(rv.actor("worker", Worker, num_cpus=1, placement=placement)) as tree:
        await pid_of(tree)
        table = ray.util.placement_group_table()
        (key,) = [key for key, group in table.items() if group["state"] == "CREATED"]
        group = PlacementGroup(PlacementGroupID(bytes.fromhex(key)))
        trial.inject()
        await anyio.to_thread.run_sync(ray.util.remove_placement_group, group)
        await trial.wait_recovered(tree, "worker")
        trial.observe("worker")


def actor_row(
    name: str,
    fault_class: FaultClass | None,
    root: str,
    response: str,
    run: Callable[[Trial], Awaitable[None]],
) -> Row:
    """Return a row about an actor."""
    return Row(name, fault_class, root, response, run)


ACTOR_ROWS: tuple[Row, ...] = (
    actor_row("kill actor", FATAL, "SYSTEM_ERROR|ProcessKilled", "restart", signalled),
    actor_row("os._exit in an actor", FATAL, "SYSTEM_ERROR|exit", "restart", lambda s: quits(s, "leave")),
    actor_row("exit_actor", None, "", "restart", lambda s: quits(s, "resign")),
    actor_row("failing __init__, never served", PERMANENT, "^LookupError: the card", "give up", always_fails),
    actor_row("failing __init__, has served", FATAL, "^LookupError: the card", "restart", fails_from_now_on),
    actor_row(
        "out of memory at load", FATAL, "^MemoryError", "give up", lambda s: never_made(s, Hungry)
    ),
    actor_row(
        "unschedulable resources", FATAL, "unicorn", "give up",
        lambda s: never_made(s, Worker, resources={"unicorn": 1.0}, start_timeout=3.0),
    ),
    actor_row(
        "no such environment", PERMANENT, "^FileNotFoundError: .*place.zip", "give up",
        lambda s: never_made(s, Worker, runtime_env={"working_dir": "file:///no/such/place.zip"}),
    ),
    actor_row("ActorUnavailable", TRANSIENT, "^ActorUnavailableError", "wait", unplugged),
    actor_row(
        "ActorUnavailable at bring-up", TRANSIENT, "^ActorUnavailableError", "wait", unplugged_at_bring_up
    ),
    actor_row("placement group removed", FATAL, "^PlacementGroupRemoved", "restart", without_its_group),
)  # fmt: skip
