"""Children that are Ray actors of the user's own classes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import anyio

from rayvisor._engine.link import HostEnd, HostGone
from rayvisor._runtime.carriers import StartIgnored, StartRefused, with_predecessor
from rayvisor.children import IgnoreStart
from rayvisor.classify import Ending
from rayvisor.errors import ChildUnavailableError, RayvisorError
from rayvisor.faults import Cause

if TYPE_CHECKING:
    from rayvisor._core.exits import Exit
    from rayvisor._ray.actors import UserActor, UserActorPlace
    from rayvisor.children import ActorStart
    from rayvisor.specs import ChildSpec, Shutdown

__all__ = ["ActorBackend"]

PROOF_SECONDS = 10.0
"""How long the end of an actor, and the proof of it, may take."""
UNRULED_TRIES = 8
"""How often an actor that cannot be reached is asked anew before it counts as lost."""
UNRULED_SECONDS = 0.25
ENDLESS_SECONDS = 365.0 * 86400


class ActorBackend:
    """Carries actor children.

    Parameters
    ----------
    open_place
        Makes the place where actors live.
    """

    def __init__(self, open_place: Callable[[], Awaitable[UserActorPlace]]) -> None:
        self._open_place = open_place
        self._place: UserActorPlace | None = None
        self._opening = anyio.Lock()
        self._current: dict[str, UserActor] = {}

    async def open(self) -> None:
        """Connect to Ray."""
        async with self._opening:
            if self._place is None:
                self._place = await self._open_place()

    @property
    def address(self) -> tuple[str, str] | None:
        """Namespace of the actors on the cluster and how their names begin: other processes find them so."""
        place = self._place
        return None if place is None else (place.cluster.namespace, place.prefix)

    def carry(self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None) -> ActorCarrier:
        """Make the carrier of an incarnation."""
        if self._place is None:
            raise RuntimeError("the place of the actors has not been opened")
        return ActorCarrier(self, self._place, (child, incarnation), spec, predecessor)

    def actor(self, child: str) -> UserActor:
        """Return the child's present incarnation.

        Raises
        ------
        ChildUnavailableError
            It has none now.
        """
        actor = self._current.get(child)
        if actor is None:
            raise ChildUnavailableError(child, "not up")
        return actor

    def up(self, child: str, actor: UserActor) -> None:
        """Note which actor is the child's present incarnation."""
        self._current[child] = actor

    def left(self, child: str, actor: UserActor) -> None:
        """Note that an actor is the child's present incarnation no more."""
        if self._current.get(child) is actor:
            del self._current[child]

    async def release(self, child: str) -> None:
        """Kill what is left of the child, and remove its placement group."""
        self._current.pop(child, None)
        if self._place is not None:
            await self._place.end_child(child, PROOF_SECONDS)

    async def close(self) -> None:
        """Kill what is left of all."""
        if self._place is not None:
            await self._place.close()


class ActorCarrier:
    """One incarnation of an actor."""

    def __init__(
        self,
        backend: ActorBackend,
        place: UserActorPlace,
        who: tuple[str, int],
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> None:
        self._backend = backend
        self._place = place
        self._child, self._incarnation = who
        self._spec = spec
        self._predecessor = predecessor
        self._actor: UserActor | None = None

    async def start(self) -> None:
        """Make the actor, and wait until its ``__init__`` has run."""
        start = cast("ActorStart", self._spec.start)
        deadline = self._spec.start_deadline
        began = anyio.current_time()
        try:
            self._actor = actor = await self._place.create(
                start.cls,
                start.args,
                {**with_predecessor(start.cls, self._predecessor), **start.kwargs},
                child=self._child,
                incarnation=self._incarnation,
                options=start.options,
            )
            await actor.ready(max(0.1, deadline - (anyio.current_time() - began)))
        except HostGone as gone:
            if gone.end.init_failed and any(cause.type == IgnoreStart.__name__ for cause in gone.end.causes):
                await self.clean()
                raise StartIgnored from None
            raise StartRefused(_ending(gone.end, "starting")) from None
        except (RayvisorError, TimeoutError) as error:
            overdue = isinstance(error, TimeoutError)
            raise StartRefused(
                Ending(causes=(Cause(type(error).__name__, str(error)),), overdue=overdue, doing="starting")
            ) from None
        self._backend.up(self._child, actor)

    async def ended(self) -> Ending:
        """Wait until Ray says that it has ended."""
        actor: Any = self._actor
        end = await actor.ended()
        for attempt in range(1, UNRULED_TRIES):
            if not end.unavailable:
                break
            # Ray has not ruled yet: waiting again never makes anything twice.
            await anyio.sleep(UNRULED_SECONDS * attempt)
            end = await actor.ended()
        self._left()
        return _ending(end, "serving")

    async def act(self, action: str) -> None:
        """Call a method of the user's: what it raises says that it does not help."""
        actor: Any = self._actor
        await actor.call(action)

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - actors are not told why
        """Ask it to end after the calls that wait already; then kill it."""
        self._left()
        if self._actor is None:
            return True
        if shutdown.seconds:
            grace = ENDLESS_SECONDS if math.isinf(shutdown.seconds) else shutdown.seconds
            if await self._actor.terminate(grace) is not None:
                await self._place.forget(self._actor)
                return True
        return await self.clean()

    async def clean(self) -> bool:
        """Kill it."""
        self._left()
        if self._actor is None:
            return True
        gone = await self._actor.kill(PROOF_SECONDS)
        if gone:
            await self._place.forget(self._actor)
        return gone

    def _left(self) -> None:
        """It is no longer the child's present incarnation, if it was."""
        if self._actor is not None:
            self._backend.left(self._child, self._actor)


def _ending(end: HostEnd, doing: str) -> Ending:
    return Ending(
        causes=end.causes,
        source="ray",
        traceback=end.traceback,
        exit_code=end.exit_code,
        signal=end.signal,
        intended=end.intended,
        lost=not end.init_failed,
        out_of_memory=end.out_of_memory,
        preempted=end.preempted or end.node_died,
        node=end.node,
        log_file=end.log_file,
        doing=doing,
    )
