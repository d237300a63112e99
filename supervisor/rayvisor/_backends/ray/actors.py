"""Users' actors: made with no restarts of Ray's own, watched from outside, ended in order or by force."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import anyio

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout, end_of, is_ray_error
from rayvisor._backends.ray.last_words import explain
from rayvisor._backends.ray.options import explain_pending, ray_options
from rayvisor._backends.ray.placement import Placements
from rayvisor._backends.ray.watch import ActorSnapshot, ActorState, ActorWatch, Watched
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._log import get_logger
from rayvisor.faults import Termination
from rayvisor.specs import ActorHook, ActorOptions

__all__ = ["UserActor", "UserActorFactory"]

log = get_logger("rayvisor.ray")

_CREATE_SECONDS = 20.0
_KILL_SECONDS = 6.0
_HOOK_SECONDS = 3600.0
"""How long a user's function may hold a thread where nothing else is said."""
_UNAVAILABLE_SECONDS = 0.1
_WORDS_SECONDS = 1.0


class UserActor:
    """One incarnation of a user's actor; `UserActorFactory.create` makes it, or it is adopted.

    Attributes
    ----------
    handle
        Ray's handle, for whoever wants to call it directly.
    name
        Its name, unique on the cluster.
    """

    def __init__(
        self,
        place: UserActorFactory,
        handle: Any,
        name: str,
        options: ActorOptions,
        watched: Watched,
    ) -> None:
        self._place = place
        self._options = options
        self._watched = watched
        self._asked_to_end = False
        self._since = time.time()
        self.handle = handle
        self.name = name
        self.ray_restarts = 0
        """Which of its lives this incarnation is: how often Ray had restarted it before."""

    @property
    def sight(self) -> ActorSnapshot:
        """What is known of it now."""
        return self._watched.sight

    async def after(self, seen: ActorSnapshot) -> ActorSnapshot:
        """Wait until there is something else to be seen."""
        return await self._watched.after(seen)

    async def ready(self, timeout: float, unreachable: Callable[[Termination], object] | None = None) -> None:
        """Wait until its ``__init__`` has run; while Ray cannot reach it, it is asked again and again.

        Parameters
        ----------
        timeout
            Seconds it may take.
        unreachable
            Told each time that Ray could not reach it.

        Raises
        ------
        HostGoneError
            It ended instead; ``end.init_failed`` tells a failing ``__init__``.
        TimeoutError
            It is not up yet: the message says what the cluster lacks, if that is why.
        """
        until = anyio.current_time() + timeout
        pause = _UNAVAILABLE_SECONDS
        while True:
            left = max(0.1, until - anyio.current_time())
            try:
                await self._await(f"__init__ of {self.name}", self.handle.__ray_ready__.remote(), left)
            except RayCallTimeout as error:
                hint = await self._place.why_pending(self._options)
                raise RayCallTimeout(error.call, timeout, hint=hint) from None
            except HostGoneError as gone:
                if not gone.end.unavailable or anyio.current_time() >= until:
                    raise
                # Ray has not ruled, and a ref that raised is spent: the same actor is asked anew.
                if unreachable is not None:
                    unreachable(gone.end)
                pause = min(2 * pause, 2.0)
                await anyio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            else:
                return

    async def ended(self) -> Termination:
        """Wait until it has ended."""
        sight = self.sight
        while sight.state is not ActorState.DEAD and sight.restarts <= self.ray_restarts:
            sight = await self.after(sight)
        end = sight.end or Termination(causes=())
        if not end.intended and not self._asked_to_end:
            end = await self._in_its_own_words(end)
        if sight.state is not ActorState.DEAD:
            return replace(end, restarted_by_ray=True, intended=end.intended or self._asked_to_end)
        return replace(end, intended=True) if self._asked_to_end else end

    async def _in_its_own_words(self, end: Termination) -> Termination:
        """Why it ended, where it said so before (`rv.fatal`): Ray only knows that its process went."""
        actor_id = self.handle._actor_id.hex()  # noqa: SLF001 - its only name
        call = functools.partial(explain, end, actor_id, self._since)
        try:
            return await self._place.cluster.call(f"last words of {self.name}", call, timeout=_WORDS_SECONDS)
        except Exception as error:  # noqa: BLE001 - Ray's account alone then
            log.debug("actor.last_words.unknown", actor=self.name, error=f"{type(error).__name__}: {error}")
            return end

    async def run(self, hook: ActorHook, timeout: float | None = None) -> Any:
        """Call what the user wants to be called: a method by its name, or a function with the handle.

        Parameters
        ----------
        hook
            What to call.
        timeout
            Seconds; None: whoever calls this sees to it.
        """
        if isinstance(hook, str):
            return await self.call(hook, timeout=timeout)
        with anyio.fail_after(timeout):
            if inspect.iscoroutinefunction(hook):
                return await hook(self.handle)
            # It may block, and the loop must not.
            call = functools.partial(hook, self.handle)
            result = await self._place.cluster.call("a hook", call, timeout=timeout or _HOOK_SECONDS)
            return await result if inspect.isawaitable(result) else result

    async def call(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Call a method. What the method raises comes as Ray sends it.

        Parameters
        ----------
        method, args, kwargs
            What to call.
        timeout
            Seconds; None waits as long as the actor lives.
        """
        bound = getattr(self.handle, method)
        return await self._await(f"{self.name}.{method}", bound.remote(*args, **(kwargs or {})), timeout)

    async def terminate(self, grace: float) -> Termination | None:
        """Ask it to end after the calls that wait already, and wait; None if it has not by then.

        Ray runs ``atexit`` functions and ``__del__`` of an actor that ends so.
        """
        self._asked_to_end = True
        self.handle.__ray_terminate__.remote()
        with anyio.move_on_after(grace):
            return await self.ended()
        return None

    async def kill(self, timeout: float = _KILL_SECONDS) -> bool:
        """End it by force; whether its end is known within the deadline."""
        self._asked_to_end = True

        def kill() -> None:
            import ray

            ray.kill(self.handle)

        gone = False
        with anyio.move_on_after(timeout):
            await self._place.cluster.call(f"ray.kill of {self.name}", kill, timeout=timeout)
            await self.ended()
            gone = True
        log.info("actor.killed", actor=self.name, gone=gone)
        return gone

    async def _await(self, what: str, ref: Any, timeout: float | None) -> Any:
        try:
            with anyio.fail_after(timeout):
                answer = await ref
                self._watched.reached(self.ray_restarts)
                return answer
        except TimeoutError as error:
            if is_ray_error(error):
                raise  # the method's own
            raise RayCallTimeout(what, timeout or 0.0) from None
        except Exception as error:
            if not is_ray_error(error) or "RayTaskError" in {kind.__name__ for kind in type(error).__mro__}:
                raise
            end = end_of(error)
            if end.unavailable and self.sight.restarts == self.ray_restarts:
                self._watched.doubt(end.causes)
            raise HostGoneError(
                self.name, 0, replace(end, intended=end.intended or self._asked_to_end)
            ) from None


class UserActorFactory:
    """Makes users' actors on a cluster. Use as a context manager, or call `close`.

    Parameters
    ----------
    cluster
        The connection; it is the caller's, and stays open.
    push
        As for `ActorWatch`.
    """

    def __init__(self, cluster: RayCluster, *, push: bool = True) -> None:
        self.cluster = cluster
        self.watch = ActorWatch(cluster, push=push)
        self._placements = Placements(cluster)
        self._token = secrets.token_hex(4)
        self._actors: dict[str, UserActor] = {}

    @property
    def prefix(self) -> str:
        """What the names of all actors made here begin with."""
        return f"rayvisor-{self._token}/"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def create(
        self,
        cls: type[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        child: str,
        incarnation: int,
        options: ActorOptions | None = None,
    ) -> UserActor:
        """Make an actor of a class, plain or made remote already; its ``max_restarts`` is 0 either way.

        Parameters
        ----------
        cls, args, kwargs
            What to make.
        child, incarnation
            Who it is: its name on the cluster is made of these and is unique.
        options
            What it asks of the cluster.
        """
        wanted = options or ActorOptions()
        name = f"{self.prefix}{child}/{incarnation}"
        if name in self._actors:
            raise ValueError(f"incarnation={incarnation}: {child!r} has had this incarnation already")
        group = await self._placements.get(child, wanted.placement)
        asked = ray_options(wanted, name=name, group=group)

        def make() -> Any:
            import ray

            given: Any = cls
            remote: Any = given if isinstance(given, ray.actor.ActorClass) else ray.remote(given)
            return remote.options(**asked).remote(*args, **(kwargs or {}))

        def undo(handle: Any) -> None:
            import ray

            ray.kill(handle)

        handle = await self.cluster.call(f"the actor {child}", make, timeout=_CREATE_SECONDS, undo=undo)
        actor = self._actors[name] = UserActor(self, handle, name, wanted, self.watch.add(handle))
        log.info("actor.created", child=child, incarnation=incarnation, name=name)
        return actor

    async def forget(self, actor: UserActor) -> None:
        """Let go of an actor that has ended."""
        self._actors.pop(actor.name, None)
        self.watch.remove(actor.handle)

    async def end_child(self, child: str, timeout: float) -> bool:
        """Kill every actor of a child that is left and remove its placement group; whether all are gone."""
        prefix = f"{self.prefix}{child}/"
        gone = await self._kill_all([a for a in self._actors.values() if a.name.startswith(prefix)], timeout)
        await self._placements.remove(child)
        return gone

    async def close(self, timeout: float = 30.0) -> None:
        """Kill every actor that is left, and remove the placement groups."""
        await self._kill_all(list(self._actors.values()), timeout)
        await self.watch.close()
        await self._placements.close()

    async def why_pending(self, options: ActorOptions) -> str:
        """Why an actor with these options does not come up, if the cluster's resources tell."""
        try:
            return explain_pending(options, await self.cluster.node_resources())
        except RayCallTimeout as error:
            return str(error)

    async def _kill_all(self, actors: Sequence[UserActor], timeout: float) -> bool:
        gone = await asyncio.gather(*(actor.kill(timeout) for actor in actors))
        for actor in actors:
            await self.forget(actor)
        return all(gone)
