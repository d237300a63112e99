"""Adopted actors: created by others, found here, watched from outside, and restarted by Ray where it may.

Ray's own restarts of such an actor are observed, and each of them begins an incarnation. An adopted actor is
ended permanently only on request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from rayvisor._backends.ray.actors import UserActor, UserActorFactory
from rayvisor._backends.ray.calls import Lane
from rayvisor._backends.ray.cleanup import kill_actor
from rayvisor._backends.ray.errors import RayCallTimeout
from rayvisor._backends.ray.watch import ActorSnapshot, ActorState, WatchedActor
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs import ActorOptions

if TYPE_CHECKING:
    from rayvisor.specs import AdoptStart

__all__ = ["Adoption"]

log = get_logger("rayvisor.ray")


class Adoption:
    """The record of one adopted child, for as long as its tree lasts and across its incarnations.

    Parameters
    ----------
    factory
        Watches the actor.
    child
        Its path.
    start
        Specification of the adopted actor.
    """

    def __init__(self, factory: UserActorFactory, child: str, start: AdoptStart) -> None:
        self._factory = factory
        self._timeouts = factory.timeouts
        self._child = child
        self._who = f"the actor of {child}"
        self.start = start
        self.handle: Any = start.actor
        self._watched: WatchedActor | None = None
        self._dead_handle: Any = None
        self._last_incarnation: tuple[Any, int] | None = None

    async def come_up(self, incarnation: int, timeout: float, made_with: dict[str, Any]) -> UserActor:
        """Wait for a restart count of the actor that has been no incarnation yet.

        Parameters
        ----------
        incarnation
            Number of the child's incarnation.
        timeout
            Seconds it may take.
        made_with
            Keyword arguments for the function that creates the next actor.

        Raises
        ------
        HostGoneError
            It has ended permanently, and cannot be recreated.
        RayCallTimeout
            It does not exist, or is not up, in time.
        """
        until = anyio.current_time() + timeout
        while True:
            handle = self.handle = await self._find(until, timeout, made_with)
            watched = self._watched = self._watched or self._factory.watch.add(handle)
            actor = UserActor(self._factory, handle, f"{self._child}/{incarnation}", ActorOptions(), watched)
            snapshot = await self._settled(actor, until, timeout)
            if snapshot.state is ActorState.ALIVE and self._last_incarnation == (handle, snapshot.restarts):
                # It has been an incarnation already: a start restarts it, where that is possible.
                actor.ray_restarts = snapshot.restarts
                if self.renewable(actor):
                    if not await self.renew(actor):
                        raise RayCallTimeout(
                            self._who,
                            self._timeouts.adopted_restart,
                            hint="its last incarnation does not end",
                        )
                    snapshot = await self._settled(actor, until, timeout)
                else:
                    log.warning("actor.kept", child=self._child, reason="it cannot be recreated")
            if snapshot.state is ActorState.ALIVE:
                actor.ray_restarts = snapshot.restarts
                if snapshot.restarts:
                    await self._reachable(actor)
                self._last_incarnation = (handle, actor.ray_restarts)
                return actor
            self.let_go()
            self._dead_handle, self.handle = handle, None
            end = snapshot.end or Termination(causes=())
            if not self.replaceable:
                raise HostGoneError(self._child, 0, end)
            log.info("actor.found_dead", child=self._child, cause=str(end.root))
            if anyio.current_time() > until:
                raise RayCallTimeout(self._who, timeout, hint=f"the one there is has ended: {end.root}")
            await anyio.sleep(self._timeouts.adopted_poll)

    @property
    def replaceable(self) -> bool:
        """Whether another actor may follow once it has ended: created here, or by its creator."""
        return self.start.make is not None or bool(self.start.name)

    def renewable(self, actor: UserActor) -> bool:
        """Return whether another incarnation can follow this one: restarted by Ray, or created here."""
        return actor.snapshot.restartable or self.start.make is not None

    async def renew(self, actor: UserActor, *, for_good: bool = False) -> bool:
        """End this incarnation of an actor; return whether its end is known.

        Parameters
        ----------
        actor
            The incarnation.
        for_good
            Whether Ray must not restart it, although it could.
        """
        again = actor.snapshot.restartable and not for_good

        kill = partial(kill_actor, actor.handle, no_restart=not again)
        over = False
        timeout = self._timeouts.adopted_restart
        with anyio.move_on_after(timeout):
            await self._factory.cluster.call(f"ray.kill of {actor.name}", kill, timeout=timeout)
            await actor.ended()
            over = True
        log.info("actor.renewed" if again else "actor.killed", child=self._child, over=over)
        return over

    def let_go(self) -> None:
        """Stop watching it."""
        watched, self._watched = self._watched, None
        if watched is not None:
            self._factory.watch.remove(watched.handle)

    async def _find(self, until: float, timeout: float, made_with: dict[str, Any]) -> Any:
        """Return the present actor: the known one, the given one, the one with the name, or a new one."""
        known = self.handle
        while known is None:
            if self.start.name:
                known = await self._by_name()
                known = None if known == self._dead_handle else known
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
                await anyio.sleep(self._timeouts.adopted_poll)
        return known

    async def _by_name(self) -> Any:
        name, namespace = self.start.name, self.start.namespace

        def find() -> Any:
            import ray

            try:
                return ray.get_actor(name, namespace=namespace or None)
            except ValueError:
                return None  # it does not exist (any more)

        return await self._factory.cluster.call(f"ray.get_actor of {name}", find)

    async def _make(self, make: Callable[..., Any], until: float, made_with: dict[str, Any]) -> Any:
        left = max(0.1, until - anyio.current_time())
        made = await self._factory.cluster.call(
            f"make of {self._child}", lambda: make(**made_with), timeout=left, undo=kill_actor, lane=Lane.USER
        )
        if not hasattr(made, "_actor_id"):
            raise TypeError(f"make={make!r} returned {made!r}, which is not a handle of a Ray actor")
        return made

    async def _reachable(self, actor: UserActor) -> None:
        """Wait briefly: this process's own connection learns later than others that a restart is over."""
        with contextlib.suppress(
            RayCallTimeout, HostGoneError
        ):  # it is busy, or its end is reported separately
            await actor.ready(self._timeouts.adopted_reach)

    async def _settled(self, actor: UserActor, until: float, timeout: float) -> ActorSnapshot:
        """Wait until it is alive or dead."""
        with anyio.move_on_after(max(0.1, until - anyio.current_time())):
            snapshot = actor.snapshot
            while snapshot.state is ActorState.RESTARTING:
                snapshot = await actor.after(snapshot)
            return snapshot
        raise RayCallTimeout(self._who, timeout, hint="Ray has not created it yet, or not restarted it")
