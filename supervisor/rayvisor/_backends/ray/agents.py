"""One node agent on each node that has hosts, created when first needed and created again when it dies.

The record of every host (node, identity, known processes) is kept here too: a new agent receives it at once,
and an agent that has no record still finds a host's processes by the key in their environment.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio

from rayvisor._backends.ray.actor_classes import agent_class
from rayvisor._backends.ray.calls import Lane
from rayvisor._backends.ray.cleanup import attempt, kill_actor
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout, end_of, is_ray_error
from rayvisor._core.protocol.links import CleanupReport, HostView
from rayvisor._core.protocol.wire import ProcessId
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["NodeAgents"]

T = TypeVar("T")
log = get_logger("rayvisor.ray")

_DELAYS = (0.0, 0.2, 1.0, 5.0)
"""Seconds before an agent that died is created again; the last value repeats."""


@dataclass
class _Host:
    process: ProcessId
    processes: tuple[ProcessId, ...] = ()


@dataclass
class _Node:
    node_id: str
    runtime_env: Mapping[str, Any]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    hosts: dict[str, _Host] = field(default_factory=dict)
    actor: Any = None
    watcher: asyncio.Task[None] | None = None
    deaths: int = 0


class NodeAgents:
    """The node agents of one connection to a cluster.

    Parameters
    ----------
    cluster
        The connection.
    timeouts
        For calls to the agents, and for the agents themselves.
    """

    def __init__(self, cluster: RayCluster, *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._cluster = cluster
        self._timeouts = timeouts.ray
        # As bytes: a worker without rayvisor could not load the argument, and would not report the reason.
        self._agent_timeouts = pickle.dumps(timeouts.process)
        self._nodes: dict[str, _Node] = {}
        self._closed = False

    async def adopt(
        self, node_id: str, key: str, host: ProcessId, runtime_env: Mapping[str, Any], timeout: float
    ) -> None:
        """Have the node's agent account for a host's processes from now on.

        Raises
        ------
        TimeoutError
            There is no agent in time. The host stays listed, and the next agent adopts it.
        """
        node = self._nodes.setdefault(node_id, _Node(node_id, runtime_env))
        node.hosts[key] = _Host(host)
        with anyio.fail_after(timeout):
            actor = await self._agent(node)
            await actor.call.remote("adopt", key, host)

    async def prepare(self, node_id: str, runtime_env: Mapping[str, Any]) -> None:
        """Create the agent of a node before its first host is there."""
        node = self._nodes.setdefault(node_id, _Node(node_id, runtime_env))
        await self._call("agent.prepare", node, self._timeouts.create_agent, lambda: self._agent(node))

    async def record(self, node_id: str, key: str, processes: Sequence[ProcessId]) -> None:
        """Note an engine's processes; the agent also finds them by itself."""
        node = self._nodes.get(node_id)
        if node is None or key not in node.hosts:
            return
        node.hosts[key].processes = tuple(processes)
        if node.actor is not None:
            answer = node.actor.call.remote("record", key, tuple(processes))
            await self._call("agent.record", node, self._timeouts.agent_answer, lambda: answer)

    async def end(self, node_id: str, key: str, timeout: float) -> CleanupReport:
        """Have a host's processes killed, and return the proof, or as much as is known."""
        node = self._nodes.get(node_id)
        if node is None:
            return CleanupReport((), (), verified=False)
        known = node.hosts.get(key)
        report = await self._ask_for_end(node, key, timeout)
        if report is not None and report.verified:
            node.hosts.pop(key, None)
            return report
        if not await self._node_lives(node_id):
            node.hosts.pop(key, None)  # nothing runs on a dead node: that is proof enough
            return CleanupReport((), (), verified=True)
        if report is not None:
            return report
        left = (known.process, *known.processes) if known is not None else ()
        return CleanupReport((), left, verified=False)

    async def snapshot(self, node_id: str, key: str) -> tuple[ProcessId, ...]:
        """Return a host's processes as they are now; empty if no agent on its node answers."""
        node = self._nodes.get(node_id)

        if node is None:
            return ()

        async def ask() -> tuple[ProcessId, ...]:
            actor = await self._agent(node)
            return tuple(await actor.call.remote("snapshot", key))

        return await self._call("agent.snapshot", node, self._timeouts.agent_answer, ask) or ()

    async def view(self, node_id: str, key: str, stack_file: str, timeout: float) -> HostView:
        """Observe a host that does not answer, from its node; empty if no agent there answers."""
        node = self._nodes.get(node_id)

        async def ask() -> HostView:
            actor = await self._agent(node) if node is not None else None
            return await actor.call.remote("view", key, stack_file) if actor is not None else HostView(())

        view = await self._call("agent.view", node, timeout, ask) if node is not None else None
        return view or HostView(())

    async def host_ended(self, node_id: str, key: str) -> tuple[int | None, int | None] | None:
        """Wait until a host's node agent reports its end; return exit code and signal, as far as known.

        None if no agent on that node can answer; the caller then relies on Ray's report.
        """
        node = self._nodes.get(node_id)
        if node is None or node.actor is None:
            return None
        try:
            how: tuple[int | None, int | None] | None = await node.actor.call.remote("host_ended", key)
        except Exception as error:
            if not is_ray_error(error):
                raise
            return None
        return how

    async def pid(self, node_id: str) -> int:
        """Return the pid of a node's agent; 0 if it has none now."""
        node = self._nodes.get(node_id)
        if node is None or node.actor is None:
            return 0
        answer = node.actor.pid.remote()
        return int(await self._call("agent.pid", node, self._timeouts.agent_answer, lambda: answer) or 0)

    async def close(self) -> None:
        """End the agents, whose hosts have been ended before. A failure of one skips no other."""
        self._closed = True
        nodes = tuple(self._nodes.values())
        self._nodes.clear()
        watchers = [node.watcher for node in nodes if node.watcher is not None]
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await asyncio.gather(*(attempt("ray.kill of a node agent", self._end(node)) for node in nodes))

    async def _end(self, node: _Node) -> None:
        actor, node.actor = node.actor, None
        if actor is not None:
            kill = partial(kill_actor, actor)
            await self._cluster.call("ray.kill of a node agent", kill, timeout=self._timeouts.agent_answer)

    async def _ask_for_end(self, node: _Node, key: str, timeout: float) -> CleanupReport | None:
        """Ask the agent, and once more if it dies meanwhile. None if there is no answer."""

        async def ask() -> CleanupReport:
            actor = await self._agent(node)
            report: CleanupReport = await actor.call.remote("end", key, timeout)
            return report

        for _ in range(2):
            report = await self._call("agent.end", node, timeout + self._timeouts.agent_slack, ask)
            if report is not None:
                return report
            if not await self._node_lives(node.node_id):
                return None
        return None

    async def _node_lives(self, node_id: str) -> bool:
        try:
            return (await self._cluster.nodes()).get(node_id, False)
        except RayCallTimeout:
            return True  # Ray has not declared it dead

    async def _call(
        self, event: str, node: _Node, timeout: float, work: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Await a call that the agent's death may break. That is logged, and None is returned."""
        try:
            with anyio.fail_after(timeout):
                return await work()
        except Exception as error:
            if not isinstance(error, TimeoutError) and not is_ray_error(error):
                raise
            log.warning(event, node=node.node_id, error=f"{type(error).__name__}: {error}"[:500])
            if not isinstance(error, TimeoutError) and not end_of(error).unavailable:
                node.actor = None
            return None

    async def _agent(self, node: _Node) -> Any:
        async with node.lock:
            if node.actor is None:
                node.actor = await self._create(node)
                if node.watcher is None or node.watcher.done():
                    node.watcher = asyncio.create_task(self._watch(node), name=f"agent of {node.node_id[:8]}")
            return node.actor

    async def _create(self, node: _Node) -> Any:
        name = f"rayvisor-agent-{node.node_id[:12]}-{secrets.token_hex(3)}"

        def create() -> Any:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options: dict[str, Any] = {
                "num_cpus": 0,
                "name": name,
                "max_restarts": 0,
                "max_task_retries": 0,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=False),
            }
            if node.runtime_env:
                options["runtime_env"] = dict(node.runtime_env)
            return agent_class().options(**options).remote(self._agent_timeouts)

        actor = await self._cluster.call(
            "node agent", create, timeout=self._timeouts.create_agent, undo=kill_actor, lane=Lane.CREATE
        )
        try:
            for key, host in list(node.hosts.items()):  # those added meanwhile are adopted by their own call
                await actor.call.remote("adopt", key, host.process)
                await actor.call.remote("record", key, host.processes)
        except BaseException:
            self._cluster.post("ray.kill of a node agent", lambda: kill_actor(actor))
            raise
        log.info("agent.up", node=node.node_id, name=name, hosts=len(node.hosts))
        return actor

    async def _watch(self, node: _Node) -> None:
        """Wait for the agent's death, and create it again after a growing delay, while the node lives."""
        while not self._closed:
            actor = node.actor
            if actor is not None:
                try:
                    await actor.watch.remote()
                except Exception as error:
                    if not is_ray_error(error):
                        raise
                    if end_of(error).unavailable:
                        await anyio.sleep(_DELAYS[1])
                        continue
                    log.warning("agent.died", node=node.node_id, cause=str(end_of(error).root)[:500])
                if node.actor is actor:
                    node.actor = None
            delay = _DELAYS[min(node.deaths, len(_DELAYS) - 1)]
            node.deaths += 1
            await anyio.sleep(delay)
            if not await self._node_lives(node.node_id):
                log.warning("agent.node_died", node=node.node_id)
                return
            await self._call("agent.create", node, self._timeouts.create_agent, lambda: self._agent(node))
