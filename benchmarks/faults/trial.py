"""A trial: a tree on real Ray in which one fault is injected, with the observed response."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

import rayvisor as rv
from benchmarks.tree import PROMPTS, Tree, engine_arguments
from rayvisor import records as r
from rayvisor.faults import FaultClass
from rayvisor.testing import rehearse

__all__ = ["MARK", "WAIT_SECONDS", "Observed", "Trial", "existing", "left_over", "new_mark"]

Response = str
"""The response to a fault: ``in place``, ``restart engine``, ``restart host``, ``restart``, ``move``,
``give up``, ``wait`` or ``nothing``."""

MARK = "RAYVISOR_FAULT_MATRIX"
"""Environment variable that marks every process started here."""
WAIT_SECONDS = 300.0
"""Timeout of all waits, generous enough for a busy machine."""
GONE_SECONDS = 15.0


class Trial:
    """The trial of one row.

    Parameters
    ----------
    engine
        ``sim`` or ``vllm``.
    local
        Whether engines run as children of this process, without Ray; this process is then their host.
    """

    def __init__(self, engine: str, tokens: int = 80, *, local: bool = False) -> None:
        self.engine = engine
        self.local = local
        self.tokens = tokens
        self.observed = Observed()
        self.at: float | None = None
        self._epochs: dict[str, int | None] = {}
        self._trees: list[Tree] = []
        self._has_tree = anyio.Event()

    # --- setup ----------------------------------------------------------------------------------

    def pool(self, size: int = 1, **options: Any) -> rv.ChildSpec:
        """Return an engine pool ``llm``, prepared for faults if ``engine_args`` contain any."""
        given = options.pop("engine_args", {})
        arguments = {**engine_arguments(self.engine), **given}
        options.setdefault("backoff", rv.Backoff(initial=0.1, maximum=0.2))
        options.setdefault("period", 1e6)
        options.setdefault("start_timeout", 120.0)
        pool = rv.engine_pool(
            "llm", engine=self.engine, engine_args=arguments, size=size, num_cpus=0.5, **options
        )
        return rehearse(pool) if self.engine == "vllm" and given.keys() - {"model"} else pool

    @asynccontextmanager
    async def tree(self, *children: rv.ChildSpec, **flags: Any) -> AsyncIterator[Tree]:
        """Run a tree; record whether it gives up or does not start."""
        try:
            async with self._watched(*children, **flags) as tree, tree.supervisor:
                yield tree
        except* rv.StartFailedError as failed:
            self.observed.problem = f"it did not come up: {failed.exceptions[0]}"

    @asynccontextmanager
    async def _watched(self, *children: rv.ChildSpec, **flags: Any) -> AsyncIterator[Tree]:
        """Yield a tree that is not started yet; record whether it gives up."""
        flags.setdefault("intensity", 5)
        flags.setdefault("period", 60.0)
        spec = rv.SupervisorSpec(children=children, **flags)
        supervisor = rv.Supervisor(spec, seed=0, local=self.local, handle_signals=False)
        tree = Tree(supervisor)
        self._trees.append(tree)
        self._has_tree.set()
        try:
            async with anyio.create_task_group() as listening:
                listening.start_soon(tree.listen, supervisor.watch())
                yield tree
        except* rv.SupervisorGaveUpError:
            self.observed.response = "give up"

    async def first_tree(self) -> Tree:
        """Wait until there is a tree; it may not be up yet."""
        with anyio.fail_after(WAIT_SECONDS):
            await self._has_tree.wait()
        return self._trees[0]

    async def run_failing_start(self, *children: rv.ChildSpec, **flags: Any) -> None:
        """Run a tree that cannot come up."""
        self.inject()
        try:
            async with self._watched(*children, **flags) as tree, tree.supervisor:
                self.observed.problem = "it came up"
        except* rv.StartFailedError:
            self.observed.response = "give up"

    # --- actions --------------------------------------------------------------------------------

    def inject(self) -> None:
        """Note that the fault is injected now."""
        self.at = time.monotonic()
        for tree in self._trees:
            for path in [node.path for node in _nodes(tree.supervisor)]:
                self._epochs[path] = _epoch(tree.supervisor, path)

    def signal(self, tree: Tree, victim: str, number: int = signal.SIGKILL, child: str = "llm/1") -> None:
        """Send a signal to a process of an engine: ``host``, or a part of its name."""
        pid = next(
            process.pid
            for role, process in tree.supervisor.processes(child)
            if victim == role or (role == "engine" and victim in process.name)
        )
        self.inject()
        os.kill(pid, number)

    async def requests(self, tree: Tree, count: int, *, expected: Sequence[str] = ()) -> Requests:
        """Start ``count`` requests and wait until each has produced a token."""
        requests = Requests(self, tree, count, expected)
        await requests.begin()
        return requests

    async def expected(self, tree: Tree, count: int) -> list[str]:
        """Return the texts of the requests without a fault."""
        pool = tree.pool
        results: list[str] = [""] * count

        async def one(number: int) -> None:
            completion = await pool.generate(PROMPTS[number], self.params).result()
            results[number] = completion.text

        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(one, number)
        return results

    @property
    def params(self) -> dict[str, Any]:
        """Greedy sampling with a fixed number of tokens."""
        return {"temperature": 0.0, "max_tokens": self.tokens, "ignore_eos": True}

    async def wait_recovered(self, tree: Tree, child: str = "llm/1", leaf: str = "ALIVE.SERVING") -> None:
        """Wait until a child serves again after the fault."""
        since = self.at or 0.0

        def came_up(record: r.StateChanged) -> bool:
            return record.child == child and record.after == leaf

        record = await tree.until(r.StateChanged, came_up, since)
        if self.observed.recover_ms is None:
            self.observed.recover_ms = (record.at - since) * 1000.0

    async def ended(self, tree: Tree) -> None:
        """Wait until the tree has ended by itself."""
        await tree.until(r.SupervisorStateChanged, lambda record: not record.path and record.state == "ended")

    # --- observations ---------------------------------------------------------------------------

    def observe(self, child: str | None = None) -> None:
        """Record the reported fault and the response to it."""
        records = [x for tree in self._trees for x in tree.records]
        since = self.at or 0.0
        faults = [x for x in records if isinstance(x, r.FaultSeen) and x.at >= since - 0.001]
        faults = [x for x in faults if child in {None, x.fault.child}]
        if faults:
            fault = faults[0].fault
            self.observed.fault_class, self.observed.root = fault.fault_class, str(fault.root)
            if self.at is not None:
                self.observed.detect_ms = (faults[0].at - self.at) * 1000.0
        if self.observed.response == "nothing":
            self.observed.response = self._response(records, since, child)

    def _response(self, records: Sequence[r.Record], since: float, child: str | None) -> str:
        moves = [
            x for x in records if isinstance(x, r.StateChanged) and x.at >= since and child in {None, x.child}
        ]
        if any(x.event == "start" for x in moves):
            again = next(x for x in moves if x.event == "start")
            for tree in self._trees:
                epoch = _epoch(tree.supervisor, again.child) if _runs(tree.supervisor) else None
                known = self._epochs.get(again.child)
                if known is not None and epoch is not None:
                    return "restart engine" if epoch == known else "restart host"
            return "restart"
        if any(x.event == "recovered" for x in moves):
            return "in place"
        doubts = [x for x in records if isinstance(x, r.FaultSeen) and x.at >= since - 0.001]
        if any(x.event == "suspect" for x in moves) or any(
            x.fault.fault_class is rv.FaultClass.TRANSIENT for x in doubts
        ):
            return "wait"
        return "nothing"


class Requests:
    """Requests in flight, compared with their texts without a fault."""

    def __init__(self, trial: Trial, tree: Tree, count: int, expected: Sequence[str]) -> None:
        self._scene = trial
        self._tree = tree
        self._expected = expected
        self._texts = [""] * count
        self._errors: list[str] = []
        self._begun = 0
        self._over = 0
        self._news = anyio.Event()
        self._tasks: list[Any] = []

    async def begin(self) -> None:
        """Start the requests; return when each has produced a token."""
        import asyncio

        self._tasks = [asyncio.create_task(self._one(number)) for number in range(len(self._texts))]
        with anyio.fail_after(WAIT_SECONDS):
            while self._begun < len(self._texts):
                await self._news.wait()

    async def _one(self, number: int) -> None:
        first = True
        try:
            async with self._tree.pool.generate(PROMPTS[number], self._scene.params) as stream:
                async for chunk in stream:
                    self._texts[number] += chunk.text
                    if first:
                        first = False
                        self._count(begun=1)
        except rv.RequestError as error:
            self._errors.append(f"{type(error).__name__}: {error}")
        finally:
            self._count(begun=int(first), over=1)

    def _count(self, *, begun: int = 0, over: int = 0) -> None:
        self._begun += begun
        self._over += over
        self._news.set()
        self._news = anyio.Event()

    async def finish(self) -> None:
        """Wait for all requests and count those whose text differs."""
        with anyio.fail_after(WAIT_SECONDS):
            while self._over < len(self._texts):
                await self._news.wait()
        wrong = sum(text != want for text, want in zip(self._texts, self._expected, strict=True))
        self._scene.observed.lost += wrong
        if self._errors:
            self._scene.observed.problem = self._errors[0]


def _nodes(supervisor: rv.Supervisor) -> list[Any]:
    if not _runs(supervisor):
        return []
    nodes = [supervisor.status()]
    for node in nodes:
        nodes.extend(node.children)
    return nodes


def _runs(supervisor: rv.Supervisor) -> bool:
    try:
        supervisor.status()
    except rv.RayvisorError:
        return False
    return True


def _epoch(supervisor: rv.Supervisor, path: str) -> int | None:
    try:
        return supervisor.status(path).epoch if path else None
    except rv.RayvisorError:
        return None


# --- leftovers -----------------------------------------------------------------------------------


def new_mark() -> str:
    """Mark all processes that are started from now on."""
    mark = secrets.token_hex(8)
    os.environ[MARK] = mark
    return mark


def existing(mark: str) -> dict[str, str]:
    """Return marked processes, actors and placement groups; those before a row do not belong to it."""
    # The key is the pid, since a process may change its title.
    processes = {str(pid): f"{line} (pid {pid})" for pid, line in _processes(mark)}
    return processes | {each: each for each in _on_ray()}


async def left_over(mark: str, before: Collection[str]) -> list[str]:
    """Return the processes, actors and placement groups that a row leaves over after a grace period."""
    found: list[str] = []
    with anyio.move_on_after(GONE_SECONDS):
        while True:
            found = [line for key, line in existing(mark).items() if key not in before]
            if not found:
                break
            await anyio.sleep(0.2)
    return found


def _processes(mark: str) -> list[tuple[int, str]]:
    """Return marked processes that are neither this one nor idle Ray workers."""
    wanted = f"{MARK}={mark}".encode()
    names = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if line and not any(name in line for name in ("ray::IDLE", "default_worker.py")):
            names.append((int(folder.name), line[:60]))
    return names


def _on_ray() -> list[str]:
    import ray

    if not ray.is_initialized():
        return []
    actors = [f"actor {each['name']}" for each in ray.util.list_named_actors(all_namespaces=True)]
    table = ray.util.placement_group_table()
    groups = [f"placement group {key}" for key, group in table.items() if group["state"] != "REMOVED"]
    return actors + groups


@dataclass(slots=True)
class Observed:
    """The observed response to an injected fault."""

    fault_class: FaultClass | None = None
    root: str = ""
    response: Response = "nothing"
    detect_ms: float | None = None
    recover_ms: float | None = None
    lost: int = 0
    left: list[str] = field(default_factory=list)
    problem: str = ""
    seconds: float = 0.0
