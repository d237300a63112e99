"""Look-ups of a tree's actors by name, from any process that is connected to the same Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import anyio

from rayvisor._backends.ray.calls import CallThreads
from rayvisor._backends.ray.errors import RayCallTimeout, end_of, is_ray_error
from rayvisor._core.protocol.links import HostGoneError

__all__ = ["FoundActor", "find", "find_in_thread"]

_threads = CallThreads(4)


class FoundActor(NamedTuple):
    """The newest incarnation of a child that Ray knows by name."""

    name: str
    incarnation: int
    handle: Any

    async def call(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, timeout: float | None
    ) -> Any:
        """Call a method. Its exception is raised as Ray sends it.

        Raises
        ------
        HostGoneError
            The actor has ended, or cannot be reached.
        RayCallTimeout
            There is no answer in time.
        """
        ref = getattr(self.handle, method).remote(*args, **kwargs)
        try:
            with anyio.fail_after(timeout):
                return await ref
        except TimeoutError as error:
            if is_ray_error(error):
                raise  # raised by the method itself
            raise RayCallTimeout(f"{self.name}.{method}", timeout or 0.0) from None
        except Exception as error:
            if not is_ray_error(error) or "RayTaskError" in {kind.__name__ for kind in type(error).__mro__}:
                raise
            raise HostGoneError(self.name, 0, end_of(error)) from None


def find(namespace: str, prefix: str, child: str) -> FoundActor | None:
    """Look up a child's present actor. This calls Ray, and blocks meanwhile.

    Parameters
    ----------
    namespace
        Namespace of the tree's actors.
    prefix
        Prefix of their names.
    child
        Path of the child.
    """
    import ray
    from ray.util import list_named_actors

    stem = f"{prefix}{child}/"
    numbers: list[int] = []
    listed: Any = list_named_actors(all_namespaces=True)
    for actor in listed:
        rest = actor["name"].removeprefix(stem)
        if actor["namespace"] == namespace and rest != actor["name"] and rest.isdecimal():
            numbers.append(int(rest))
    for number in sorted(numbers, reverse=True):
        name = f"{stem}{number}"
        try:
            return FoundActor(name, number, ray.get_actor(name, namespace=namespace))
        except ValueError:
            continue  # it has ended meanwhile
    return None


async def find_in_thread(namespace: str, prefix: str, child: str, timeout: float) -> FoundActor | None:
    """Look up a child's present actor without blocking the event loop.

    It has threads of its own: user code cannot take them all, as it can with those of ``asyncio.to_thread``.

    Raises
    ------
    RayCallTimeout
        Ray does not answer in time.
    """
    look_up = partial(find, namespace, prefix, child)
    return await _threads.run(f"look-up of {child}", look_up, timeout=timeout)
