"""Actors that somebody else made: found, watched from outside, restarted by Ray itself where it may, let go.

Ray's own restart of such an actor is observed: each of its lives is an incarnation. Nothing here ends one for
good unless it is asked to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from rayvisor._backends.ray.actors import UserActor, UserActorFactory
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._backends.ray.watch import ActorSnapshot, ActorState, Watched
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs import ActorOptions

if TYPE_CHECKING:
    from rayvisor.specs import AdoptStart

__all__ = ["Adoption"]

log = get_logger("rayvisor.ray")

_LOOK_SECONDS = 0.2
"""Between two looks for a name that is not there yet."""
_RENEW_SECONDS = 10.0
_REACH_SECONDS = 5.0


class Adoption:
    """What is known of one adopted child for as long as its tree lasts, whatever its incarnations.

    Parameters
    ----------
    place
        Where actors are watched.
    child
        Its path.
    start
        What is adopted.
    """

    def __init__(self, place: UserActorFactory, child: str, start: AdoptStart) -> None:
        self._place = place
        self._child = child
        self._who = f"the actor of {child}"
        self.start = start
        self.handle: Any = start.actor
        self._watched: Watched | None = None
        self._buried: Any = None
        self._lived: tuple[Any, int] | None = None

    async def come_up(self, incarnation: int, timeout: float, made_with: dict[str, Any]) -> UserActor:
        """Wait for a life of the actor that has been no incarnation yet.

        Parameters
        ----------
        incarnation
            Of the child.
        timeout
            Seconds it may take.
        made_with
            Keyword arguments of the function that makes the next one.

        Raises
        ------
        HostGoneError
            It has ended for good, and nobody can make it again.
        RayCallTimeout
            It is not there, or not up.
        """
        until = anyio.current_time() + timeout
        while True:
            handle = self.handle = await self._find(until, timeout, made_with)
            watched = self._watched = self._watched or self._place.watch.add(handle)
            actor = UserActor(self._place, handle, f"{self._child}/{incarnation}", ActorOptions(), watched)
            sight = await self._settled(actor, until, timeout)
            if sight.state is ActorState.ALIVE and self._lived == (handle, sight.restarts):
                # It has been an incarnation already: a start begins a new life, where there can be one.
                actor.ray_restarts = sight.restarts
                if self.renewable(actor):
                    if not await self.renew(actor):
                        raise RayCallTimeout(self._who, _RENEW_SECONDS, hint="its last life does not end")
                    sight = await self._settled(actor, until, timeout)
                else:
                    log.warning("actor.kept", child=self._child, why="nobody could make it again")
            if sight.state is ActorState.ALIVE:
                actor.ray_restarts = sight.restarts
                if sight.restarts:
                    await self._reachable(actor)
                self._lived = (handle, actor.ray_restarts)
                return actor
            self.let_go()
            self._buried, self.handle = handle, None
            end = sight.end or Termination(causes=())
            if not self.replaceable:
                raise HostGoneError(self._child, 0, end)
            log.info("actor.found_dead", child=self._child, why=str(end.root))
            if anyio.current_time() > until:
                raise RayCallTimeout(self._who, timeout, hint=f"the one there is has ended: {end.root}")
            await anyio.sleep(_LOOK_SECONDS)

    @property
    def replaceable(self) -> bool:
        """Whether there may be another one once it has ended: made here, or by whoever made the first."""
        return self.start.make is not None or bool(self.start.name)

    def renewable(self, actor: UserActor) -> bool:
        """Whether a new life follows if this one is ended: Ray restarts it, or another one is made."""
        return actor.sight.restartable or self.start.make is not None

    async def renew(self, actor: UserActor, *, for_good: bool = False) -> bool:
        """End this life of an actor; whether that is known to be over.

        Parameters
        ----------
        actor
            The incarnation.
        for_good
            Ray is not to restart it, though it might.
        """
        again = actor.sight.restartable and not for_good

        def kill() -> None:
            import ray

            ray.kill(actor.handle, no_restart=not again)

        over = False
        with anyio.move_on_after(_RENEW_SECONDS):
            await self._place.cluster.call(f"ray.kill of {actor.name}", kill, timeout=_RENEW_SECONDS)
            await actor.ended()
            over = True
        log.info("actor.renewed" if again else "actor.killed", child=self._child, over=over)
        return over

    def let_go(self) -> None:
        """Watch it no more."""
        watched, self._watched = self._watched, None
        if watched is not None:
            self._place.watch.remove(watched.handle)

    async def _find(self, until: float, timeout: float, made_with: dict[str, Any]) -> Any:
        """The actor as it is now: the one that is known, the one given, by name, or made."""
        known = self.handle
        while known is None:
            if self.start.name:
                known = await self._by_name()
                known = None if known == self._buried else known
            if known is None and self.start.make is not None:
                known = await self._make(self.start.make, until, made_with)
            if known is None and not self.start.name:
                causes = (Cause("ActorDiedError", "the adopted actor has ended"),)
                raise HostGoneError(self._child, 0, Termination(causes=causes))
            if known is None:
                if anyio.current_time() > until:
                    where = f" in namespace {self.start.namespace!r}" if self.start.namespace else ""
                    hint = "is it detached, and its namespace the right one?"
                    raise RayCallTimeout(f"an actor named {self.start.name!r}{where}", timeout, hint=hint)
                await anyio.sleep(_LOOK_SECONDS)
        return known

    async def _by_name(self) -> Any:
        name, namespace = self.start.name, self.start.namespace

        def find() -> Any:
            import ray

            try:
                return ray.get_actor(name, namespace=namespace or None)
            except ValueError:
                return None  # it is not there, or not any more

        return await self._place.cluster.call(f"ray.get_actor of {name}", find)

    async def _make(self, make: Callable[..., Any], until: float, made_with: dict[str, Any]) -> Any:
        def undo(handle: Any) -> None:
            import ray

            ray.kill(handle)

        left = max(0.1, until - anyio.current_time())
        made = await self._place.cluster.call(
            f"make of {self._child}", lambda: make(**made_with), timeout=left, undo=undo
        )
        if not hasattr(made, "_actor_id"):
            raise TypeError(f"make={make!r} returned {made!r}, which is no handle of a Ray actor")
        return made

    @staticmethod
    async def _reachable(actor: UserActor) -> None:
        """Give this process's own connection a moment: it hears later than others that a restart is over."""
        with contextlib.suppress(RayCallTimeout, HostGoneError):  # it is busy, or its end is told by itself
            await actor.ready(_REACH_SECONDS)

    async def _settled(self, actor: UserActor, until: float, timeout: float) -> ActorSnapshot:
        """Wait until it is alive in a life of its own, or dead."""
        with anyio.move_on_after(max(0.1, until - anyio.current_time())):
            sight = actor.sight
            while sight.state is ActorState.RESTARTING:
                sight = await actor.after(sight)
            return sight
        raise RayCallTimeout(self._who, timeout, hint="Ray has not made it yet, or not restarted it")
