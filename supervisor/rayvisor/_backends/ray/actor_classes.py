"""The actor classes, shipped by value.

A class that workers find by importing rayvisor could not say that rayvisor is missing there: Ray would
report that the actor failed to import. These shells are local classes, so they travel as code; what they
hold is imported in their ``__init__``, and a worker without rayvisor, or with another version, answers so
in plain words. That is the version check, on the very node and in the very environment of the host, and it
costs nothing.

An async actor runs each concurrency group on an event loop of its own, in a thread of its own. Everything
that touches the resident therefore stays in the default group, on one loop; only the sentinel, which
touches nothing, has a group, and still waits while that loop is busy.
"""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["agent_class", "host_class"]

_CALLS_AT_ONCE = 1000


@cache
def host_class() -> Any:
    """The host actor's class, for this process's connection to Ray."""
    import ray

    class RayvisorHost:
        def __init__(self, key: str, child: str, epoch: int, engine: str, wanted: str) -> None:
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

                    self._host = HostActor(key, child, epoch, engine)
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

    remote: Any = ray.remote  # its types do not know of concurrency groups
    return remote(concurrency_groups={"watch": 16}, max_concurrency=_CALLS_AT_ONCE)(RayvisorHost)


@cache
def agent_class() -> Any:
    """The node agent's class, for this process's connection to Ray."""
    import ray

    class RayvisorNodeAgent:
        def __init__(self) -> None:
            from rayvisor._backends.process.node_agent import NodeAgent

            self._agent = NodeAgent()

        async def call(self, method: str, *arguments: Any) -> Any:
            return await getattr(self._agent, method)(*arguments)

        async def pid(self) -> int:
            import os

            return os.getpid()

        @ray.method(concurrency_group="watch")
        async def watch(self) -> None:
            import asyncio

            await asyncio.Event().wait()

    remote: Any = ray.remote  # its types do not know of concurrency groups
    return remote(concurrency_groups={"watch": 4}, max_concurrency=_CALLS_AT_ONCE)(RayvisorNodeAgent)
