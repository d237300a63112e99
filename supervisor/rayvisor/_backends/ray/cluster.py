"""The connection to a cluster: start a local Ray, or attach to a running one and never shut that down.

    async with await RayCluster.connect() as cluster: ...

The first of these wins: a given address; a Ray that this process has initialised already; ``RAY_ADDRESS``.
Otherwise a local Ray is started, quiet and without a dashboard. Only that one is ever shut down.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from rayvisor._backends.process.identity import identify
from rayvisor._backends.process.killing import end_processes
from rayvisor._backends.process.tree import tree
from rayvisor._backends.ray.calls import CallThreads, Lane
from rayvisor._backends.ray.cleanup import attempt
from rayvisor._core.protocol.wire import ProcessId
from rayvisor._log import get_logger
from rayvisor.errors import ClusterUnavailableError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["RayCluster", "start_or_join"]

T = TypeVar("T")
log = get_logger("rayvisor.ray")

_ONLY_AT_START = frozenset(
    {
        "num_cpus",
        "num_gpus",
        "resources",
        "labels",
        "object_store_memory",
        "include_dashboard",
        "_system_config",
    }
)
"""Arguments that ``ray.init`` refuses or ignores when it attaches to a cluster."""


def start_or_join(arguments: Mapping[str, Any]) -> Any:
    """Start or join a Ray. A local one that does not start in the 30 s Ray allows is started once more."""
    import ray

    try:
        return ray.init(**arguments)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        log.warning("ray.start.retried", reason=str(error))
        ray.shutdown()
        return ray.init(**arguments)


class RayCluster:
    """A connection to Ray, made by `connect`.

    Attributes
    ----------
    started
        Whether this object started the Ray it is connected to, and so may shut it down.
    namespace
        Namespace of named actors.
    """

    def __init__(
        self,
        calls: CallThreads,
        *,
        started: bool,
        connected: bool,
        facts: dict[str, str],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._calls = calls
        self._timeouts = timeouts
        self._connected = connected
        self._session = facts["session"]
        self._closed = False
        self.started = started
        self.namespace = facts["namespace"]
        self.gcs_address = facts["gcs_address"]
        self.node_id = facts["node_id"]

    @classmethod
    async def connect(
        cls,
        address: str | None = None,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        namespace: str | None = None,
        options: dict[str, Any] | None = None,
        threads: int = 8,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> RayCluster:
        """Start a local Ray or attach to one that runs.

        Parameters
        ----------
        address
            Of a running cluster; ``"local"`` starts one whatever ``RAY_ADDRESS`` says.
        num_cpus, num_gpus
            Resources of a Ray that is started. None: those of the machine.
        namespace
            For named actors. None: a fresh one.
        options
            More arguments for ``ray.init``; these win. Arguments that only a new Ray takes, such as
            ``num_cpus``, are left out when attaching.
        threads
            How many kills and look-ups may be under way at once, and as many creations; see `CallThreads`.
        timeouts
            For connecting (by default 60 s), for calls to Ray, and for the end of a Ray started here.

        Raises
        ------
        ClusterUnavailableError
            No Ray could be started or attached to.
        """
        calls = CallThreads(threads)
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        space = namespace or f"rayvisor-{secrets.token_hex(4)}"

        # Ray prints each worker's death to standard output. We report deaths, and that output belongs to the
        # user. The variable is read when ray is imported; a value that the user has set stays.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing")

        def connect() -> RayCluster:
            import ray

            if ray.is_initialized():
                facts = _facts({})
                if address not in {None, facts["gcs_address"]}:
                    raise ClusterUnavailableError(
                        where, f"this process is connected to {facts['gcs_address']} already"
                    )
                return cls(calls, started=False, connected=False, facts=facts, timeouts=timeouts)
            arguments: dict[str, Any] = {
                "address": where,
                "namespace": space,
                "log_to_driver": False,
                "logging_level": "ERROR",
            }
            if where == "local":
                arguments |= {
                    "num_cpus": num_cpus,
                    "num_gpus": num_gpus,
                    "include_dashboard": False,
                }
            given = options or {}
            if where != "local":
                given = {name: value for name, value in given.items() if name not in _ONLY_AT_START}
            try:
                context = start_or_join(arguments | given)
            except Exception as error:
                raise ClusterUnavailableError(where, f"{type(error).__name__}: {error}") from error
            facts = _facts(context.address_info)
            return cls(calls, started=where == "local", connected=True, facts=facts, timeouts=timeouts)

        cluster = await calls.run("ray.init", connect, timeout=timeouts.ray.connect, undo=cls._disconnect)
        log.info(
            "ray.connected", started=cluster.started, address=cluster.gcs_address, namespace=cluster.namespace
        )
        return cluster

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(
        self,
        name: str,
        function: Callable[[], T],
        *,
        timeout: float | None = None,
        undo: Callable[[T], object] | None = None,
        lane: Lane = Lane.CONTROL,
    ) -> T:
        """Run a blocking call in a thread, see `CallThreads.run`; without a timeout, by default for 10 s."""
        timeout = self._timeouts.ray.call if timeout is None else timeout
        return await self._calls.run(name, function, timeout=timeout, undo=undo, lane=lane)

    def post(self, name: str, function: Callable[[], object]) -> None:
        """Run a blocking Ray call without waiting for it, see `CallThreads.post`."""
        self._calls.post(name, function)

    async def nodes(self) -> dict[str, bool]:
        """Return the ids of all nodes that Ray knows, and whether each is alive."""

        def nodes() -> dict[str, bool]:
            return {node["NodeID"]: bool(node["Alive"]) for node in _nodes()}

        return await self.call("ray.nodes", nodes, timeout=self._timeouts.ray.node_table)

    async def node_resources(self) -> list[dict[str, float]]:
        """Return the total resources of each living node, free or not."""

        def resources() -> list[dict[str, float]]:
            return [dict(node["Resources"]) for node in _nodes() if node["Alive"]]

        return await self.call("ray.nodes", resources, timeout=self._timeouts.ray.node_table)

    async def close(self) -> None:
        """Disconnect: shut down what `connect` started, and leave everything else as it was."""
        if self._closed:
            return
        self._closed = True
        left: tuple[ProcessId, ...] = ()
        times = self._timeouts.ray
        if self.started:
            listing = self.call("processes of ray", self._own_processes, timeout=times.own_processes)
            left = await attempt("processes of ray", listing) or ()
        if self._connected:
            shutdown = self.call("ray.shutdown", self._disconnect, timeout=times.disconnect)
            await attempt("ray.shutdown", shutdown)
        if left:
            # Workers exit by themselves once their raylet is gone, but Ray does not wait for that.
            end = end_processes(left, key=None, timeout=times.own_processes, timeouts=self._timeouts.process)
            report = await attempt("end of ray", end)
            if report is not None and not report.verified:
                log.warning("ray.processes.left", processes=[process.pid for process in report.left])
        self._calls.close()
        log.info("ray.closed", shut_down=self.started)

    def _disconnect(self, _: object = None) -> None:
        if self._connected:
            import ray

            ray.shutdown()

    def _own_processes(self) -> tuple[ProcessId, ...]:
        """Return the processes of the Ray started here: children that name its session, and theirs."""
        me = identify(os.getpid())
        if me is None or not self._session:
            return ()
        found: dict[int, ProcessId] = {}
        for process in tree(me):
            with contextlib.suppress(OSError):
                if self._session.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                    found[process.pid] = process
        found.update((process.pid, process) for process in tree(*found.values()))
        return tuple(found.values())


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: Any = ray.nodes  # it has no types
    return list(nodes())


def _facts(info: dict[str, Any]) -> dict[str, str]:
    import ray

    context = ray.get_runtime_context()
    return {
        "session": str(info.get("session_dir") or ""),
        "namespace": str(context.namespace),
        "gcs_address": str(context.gcs_address),
        "node_id": str(context.get_node_id()),
    }
