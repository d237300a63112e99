"""Users' actors: created without restarts by Ray, watched from outside, ended in order or by force."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import anyio

from rayvisor._backends.ray.calls import Lane
from rayvisor._backends.ray.cleanup import attempt, kill_actor
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout, end_of, is_ray_error
from rayvisor._backends.ray.last_words import explain
from rayvisor._backends.ray.options import explain_pending, ray_options
from rayvisor._backends.ray.placement_groups import PlacementGroups
from rayvisor._backends.ray.watch import ActorSnapshot, ActorState, ActorWatch, WatchedActor
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._log import get_logger
from rayvisor.faults import Termination
from rayvisor.specs import ActorHook, ActorOptions
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = ["UserActor", "UserActorFactory"]

log = get_logger("rayvisor.ray")


class UserActor:
    """One incarnation of a user's actor, made by `UserActorFactory.create` or adopted.

    Attributes
    ----------
    handle
        Ray's handle, for direct calls.
    name
        Its name, unique on the cluster.
    """

    def __init__(
        self,
        factory: UserActorFactory,
        handle: Any,
        name: str,
        options: ActorOptions,
        watched: WatchedActor,
    ) -> None:
        self._factory = factory
        self._timeouts = factory.timeouts
        self._options = options
        self._watched = watched
        self._asked_to_end = False
        self._since = time.time()
        self.handle = handle
        self.name = name
        self.ray_restarts = 0
        """Number of restarts by Ray before this incarnation."""

    @property
    def snapshot(self) -> ActorSnapshot:
        """Its known state."""
        return self._watched.snapshot

    async def after(self, seen: ActorSnapshot) -> ActorSnapshot:
        """Wait until there is another snapshot, and return it."""
        return await self._watched.after(seen)

    async def ready(self, timeout: float, unreachable: Callable[[Termination], object] | None = None) -> None:
        """Wait until its ``__init__`` has run. While Ray cannot reach it, it is polled repeatedly.

        Parameters
        ----------
        timeout
            Seconds it may take.
        unreachable
            Called each time that Ray could not reach it.

        Raises
        ------
        HostGoneError
            It ended instead; ``end.init_failed`` marks a failing ``__init__``.
        TimeoutError
            It is not up yet; the message names what the cluster lacks, if that is the reason.
        """
        until = anyio.current_time() + timeout
        pause = self._timeouts.unavailable_retry_first
        while True:
            left = max(0.1, until - anyio.current_time())
            try:
                await self._await(f"__init__ of {self.name}", self.handle.__ray_ready__.remote(), left)
            except RayCallTimeout as error:
                hint = await self._factory.why_pending(self._options)
                raise RayCallTimeout(error.call, timeout, hint=hint) from None
            except HostGoneError as gone:
                if not gone.end.unavailable or anyio.current_time() >= until:
                    raise
                # Its death is not confirmed, and a ref that raised is spent: the same actor is called again.
                if unreachable is not None:
                    unreachable(gone.end)
                await anyio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, self._timeouts.unavailable_retry_longest)
            else:
                return

    async def ended(self) -> Termination:
        """Wait until it has ended."""
        snapshot = self.snapshot
        while snapshot.state is not ActorState.DEAD and snapshot.restarts <= self.ray_restarts:
            snapshot = await self.after(snapshot)
        end = snapshot.end or Termination(causes=())
        if not end.intended and not self._asked_to_end:
            end = await self._with_last_words(end)
        if snapshot.state is not ActorState.DEAD:
            return replace(end, restarted_by_ray=True, intended=end.intended or self._asked_to_end)
        return replace(end, intended=True) if self._asked_to_end else end

    async def _with_last_words(self, end: Termination) -> Termination:
        """Add what it said before it ended (`rv.fatal`): Ray only knows that its process has exited."""
        actor_id = self.handle._actor_id.hex()  # noqa: SLF001 - Ray gives an actor's id in no other way
        call = functools.partial(explain, end, actor_id, self._since)
        try:
            return await self._factory.cluster.call(
                f"last words of {self.name}", call, timeout=self._timeouts.last_words
            )
        except Exception as error:  # noqa: BLE001 - Ray's own report is used then
            log.debug("actor.last_words.unknown", actor=self.name, error=f"{type(error).__name__}: {error}")
            return end

    async def run(self, hook: ActorHook, timeout: float | None = None) -> Any:
        """Call a hook: a method by its name, or a function with the handle.

        Parameters
        ----------
        hook
            The method's name, or the function.
        timeout
            Seconds; None: the caller bounds the call, and a function holds its thread for at most an hour.
        """
        if isinstance(hook, str):
            return await self.call(hook, timeout=timeout)
        with anyio.fail_after(timeout):
            if inspect.iscoroutinefunction(hook):
                return await hook(self.handle)
            # It may block, so it runs in a thread of the user lane.
            call = functools.partial(hook, self.handle)
            result = await self._factory.cluster.call(
                "a hook", call, timeout=timeout or self._timeouts.user_call, lane=Lane.USER
            )
            return await result if inspect.isawaitable(result) else result

    async def call(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Call a method. Its exception is raised as Ray sends it.

        Parameters
        ----------
        method, args, kwargs
            The method and its arguments.
        timeout
            Seconds; None waits as long as the actor lives.
        """
        bound = getattr(self.handle, method)
        return await self._await(f"{self.name}.{method}", bound.remote(*args, **(kwargs or {})), timeout)

    async def terminate(self, grace: float) -> Termination | None:
        """Ask it to end after the calls that are queued already, and wait; None if it has not ended by then.

        Ray then runs the actor's ``atexit`` functions and ``__del__``.
        """
        self._asked_to_end = True
        self.handle.__ray_terminate__.remote()
        with anyio.move_on_after(grace):
            return await self.ended()
        return None

    async def kill(self, timeout: float | None = None) -> bool:
        """End it by force; return whether its end is known within ``timeout`` seconds (by default 6)."""
        timeout = self._timeouts.actor_kill if timeout is None else timeout
        self._asked_to_end = True

        kill = functools.partial(kill_actor, self.handle)
        gone = False
        with anyio.move_on_after(timeout), contextlib.suppress(RayCallTimeout):
            await self._factory.cluster.call(f"ray.kill of {self.name}", kill, timeout=timeout)
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
            if end.unavailable and self.snapshot.restarts == self.ray_restarts:
                self._watched.suspect(end.causes)
            raise HostGoneError(
                self.name, 0, replace(end, intended=end.intended or self._asked_to_end)
            ) from None


class UserActorFactory:
    """Creates users' actors on a cluster. Use it as a context manager, or call `close`.

    Parameters
    ----------
    cluster
        The connection. It belongs to the caller and stays open.
    push
        As for `ActorWatch`.
    timeouts
        For calls to Ray and its actors.
    """

    def __init__(
        self, cluster: RayCluster, *, push: bool = True, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray
    ) -> None:
        self.cluster = cluster
        self.timeouts = timeouts
        self.watch = ActorWatch(cluster, push=push, timeouts=timeouts)
        self._placement_groups = PlacementGroups(cluster)
        self._token = secrets.token_hex(4)
        self._actors: dict[str, UserActor] = {}

    @property
    def prefix(self) -> str:
        """Prefix of the names of all actors created here."""
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
        """Create an actor of a class, plain or remote already; its ``max_restarts`` is 0 either way.

        Parameters
        ----------
        cls, args, kwargs
            The class and its arguments.
        child, incarnation
            Its identity: its unique name on the cluster is made of these.
        options
            Its resources and placement.
        """
        wanted = options or ActorOptions()
        name = f"{self.prefix}{child}/{incarnation}"
        if name in self._actors:
            raise ValueError(f"incarnation={incarnation}: {child!r} has had this incarnation already")
        group = await self._placement_groups.get(child, wanted.placement)
        asked = ray_options(wanted, name=name, group=group)

        def make() -> Any:
            import ray

            given: Any = cls
            remote: Any = given if isinstance(given, ray.actor.ActorClass) else ray.remote(given)
            return remote.options(**asked).remote(*args, **(kwargs or {}))

        handle = await self.cluster.call(
            f"the actor {child}",
            make,
            timeout=self.timeouts.create_actor,
            undo=kill_actor,
            lane=Lane.CREATE,
        )
        actor = self._actors[name] = UserActor(self, handle, name, wanted, self.watch.add(handle))
        log.info("actor.created", child=child, incarnation=incarnation, name=name)
        return actor

    async def forget(self, actor: UserActor) -> None:
        """Stop watching an actor that has ended."""
        self._actors.pop(actor.name, None)
        self.watch.remove(actor.handle)

    async def end_child(self, child: str, timeout: float) -> bool:
        """Kill every remaining actor of a child, remove its placement group; return whether all are gone."""
        prefix = f"{self.prefix}{child}/"
        gone = await self._kill_all([a for a in self._actors.values() if a.name.startswith(prefix)], timeout)
        await attempt(f"placement group of {child}", self._placement_groups.remove(child))
        return gone

    async def close(self, timeout: float = 30.0) -> None:
        """Kill every remaining actor, and remove the placement groups. A failure of one skips no other."""
        await self._kill_all(list(self._actors.values()), timeout)
        await attempt("watch of actors", self.watch.close())
        await attempt("placement groups", self._placement_groups.close())

    async def why_pending(self, options: ActorOptions) -> str:
        """Return why an actor with these options does not start, if the cluster's resources show it."""
        try:
            return explain_pending(options, await self.cluster.node_resources())
        except RayCallTimeout as error:
            return str(error)

    async def _kill_all(self, actors: Sequence[UserActor], timeout: float) -> bool:
        kills = (attempt(f"kill of {actor.name}", actor.kill(timeout)) for actor in actors)
        gone = await asyncio.gather(*kills)
        for actor in actors:
            await self.forget(actor)
        return all(gone)
