"""The actor classes, shipped by value.

A class that workers import from rayvisor could not report that rayvisor is missing there: Ray would report
that the actor failed to import. These wrappers are local classes, so they are sent as code. They import
what they wrap in ``__init__``, and a worker without rayvisor, or with another version, answers with that
fact. This is the version check, on the node and in the environment of the host itself, at no further cost.
For the same reason timeouts are passed as pickled bytes, and loaded after that check.

An async actor runs each concurrency group on its own event loop, in its own thread. Everything that touches
the wrapped object therefore stays in the default group, on one loop. Only the sentinel, which touches
nothing, has a group: it still waits while that loop is busy.
"""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["agent_class", "host_class"]

_MAX_CONCURRENT_CALLS = 1000


@cache
def host_class() -> Any:
    """Return the class of host actors, for this process's connection to Ray."""
    import ray

    class RayvisorHost:
        def __init__(
            self, key: str, child: str, epoch: int, engine: str, wanted: str, timeouts: bytes
        ) -> None:
            import pickle

            import ray as here

            self._node_id = here.get_runtime_context().get_node_id()
            self._version: str | None = None
            self._problem = ""
            try:
                from importlib import import_module

                # By name: the worker's rayvisor may be of any version, and so of any layout.
                self._version = getattr(import_module("rayvisor"), "__version__", None)
                if self._version == wanted:
                    from rayvisor._backends.ray.host_actor import HostActor

                    # Only now: a worker without rayvisor could not load them.
                    loaded = pickle.loads(timeouts)  # noqa: S301 - the driver's own
                    self._host = HostActor(key, child, epoch, engine, timeouts=loaded)
            except ImportError as error:
                self._version = None
                self._problem = f"{type(error).__name__}: {error}"

        async def describe(self) -> Any:
            if getattr(self, "_host", None) is None:
                return (self._version, self._problem)
            return await self._host.describe(self._node_id)

        async def call(self, method: str, *arguments: Any) -> Any:
            return await getattr(self._host, method)(*arguments)

        async def stream(self) -> Any:
            async for items in self._host.stream():
                yield items

        @ray.method(concurrency_group="watch")
        async def watch(self) -> None:
            import asyncio

            await asyncio.Event().wait()

    remote: Any = ray.remote  # its types lack concurrency groups
    return remote(concurrency_groups={"watch": 16}, max_concurrency=_MAX_CONCURRENT_CALLS)(RayvisorHost)


@cache
def agent_class() -> Any:
    """Return the class of node agents, for this process's connection to Ray."""
    import ray

    class RayvisorNodeAgent:
        def __init__(self, timeouts: bytes) -> None:
            import pickle

            from rayvisor._backends.process.node_agent import NodeAgent

            self._agent = NodeAgent(timeouts=pickle.loads(timeouts))  # noqa: S301 - the driver's own

        async def call(self, method: str, *arguments: Any) -> Any:
            return await getattr(self._agent, method)(*arguments)

        async def pid(self) -> int:
            import os

            return os.getpid()

        @ray.method(concurrency_group="watch")
        async def watch(self) -> None:
            import asyncio

            await asyncio.Event().wait()

    remote: Any = ray.remote  # its types lack concurrency groups
    return remote(concurrency_groups={"watch": 4}, max_concurrency=_MAX_CONCURRENT_CALLS)(RayvisorNodeAgent)
