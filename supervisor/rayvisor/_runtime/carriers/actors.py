"""Children that are Ray actors of the user's own classes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from rayvisor._engine.link import HostEnd, HostGone
from rayvisor._runtime.carriers import StartRefused
from rayvisor.children import ActorStart
from rayvisor.classify import Ending
from rayvisor.errors import ChildUnavailableError, RayvisorError
from rayvisor.faults import Cause

if TYPE_CHECKING:
    from rayvisor._core.exits import Exit
    from rayvisor._ray.actors import UserActor, UserActorPlace
    from rayvisor.specs import ChildSpec, Shutdown

__all__ = ["ActorBackend"]

PROOF_SECONDS = 10.0
UNRULED_TRIES = 8


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
        self._current: dict[str, UserActor] = {}

    async def open(self) -> None:
        self._place = await self._open_place()

    def carry(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None  # noqa: ARG002 - the protocol's
    ) -> ActorCarrier:
        assert isinstance(spec.start, ActorStart)
        assert self._place is not None  # open() came first
        return ActorCarrier(self, self._place, child, incarnation, spec)

    def actor(self, child: str) -> UserActor:
        """The child's present incarnation.

        Raises
        ------
        ChildUnavailableError
            It has none now.
        """
        actor = self._current.get(child)
        if actor is None:
            raise ChildUnavailableError(child, "not up")
        return actor

    def up(self, child: str, actor: UserActor | None) -> None:
        """Note which actor is the child's present incarnation."""
        if actor is None:
            self._current.pop(child, None)
        else:
            self._current[child] = actor

    async def release(self, child: str) -> None:
        self._current.pop(child, None)
        if self._place is not None:
            await self._place.end_child(child, PROOF_SECONDS)

    async def close(self) -> None:
        if self._place is not None:
            await self._place.close()


class ActorCarrier:
    """One incarnation of an actor."""

    def __init__(
        self, backend: ActorBackend, place: UserActorPlace, child: str, incarnation: int, spec: ChildSpec
    ) -> None:
        self._backend = backend
        self._place = place
        self._child = child
        self._incarnation = incarnation
        self._spec = spec
        self._actor: UserActor | None = None

    async def start(self) -> None:
        start = self._spec.start
        assert isinstance(start, ActorStart)
        try:
            self._actor = actor = await self._place.create(
                start.cls,
                start.args,
                start.kwargs,
                child=self._child,
                incarnation=self._incarnation,
                options=start.options,
            )
            await actor.ready(self._spec.start_deadline)
        except HostGone as gone:
            raise StartRefused(_ending(gone.end, "starting")) from None
        except (RayvisorError, TimeoutError) as error:
            overdue = isinstance(error, TimeoutError)
            raise StartRefused(
                Ending(causes=(Cause(type(error).__name__, str(error)),), overdue=overdue, doing="starting")
            ) from None
        self._backend.up(self._child, actor)

    async def ended(self) -> Ending:
        assert self._actor is not None  # it was started
        for attempt in range(UNRULED_TRIES):
            end = await self._actor.ended()
            if not end.unavailable:
                break
            # Ray has not ruled yet: waiting again never makes anything twice.
            await anyio.sleep(0.25 * (attempt + 1))
        self._backend.up(self._child, None)
        return _ending(end, "serving")

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - actors are not told why
        self._backend.up(self._child, None)
        if self._actor is None:
            return True
        if shutdown.seconds:
            grace = 365.0 * 86400 if math.isinf(shutdown.seconds) else shutdown.seconds
            if await self._actor.terminate(grace) is not None:
                await self._place.forget(self._actor)
                return True
        return await self.clean()

    async def clean(self) -> bool:
        self._backend.up(self._child, None)
        if self._actor is None:
            return True
        gone = await self._actor.kill(PROOF_SECONDS)
        if gone:
            await self._place.forget(self._actor)
        return gone


def _ending(end: HostEnd, doing: str) -> Ending:
    return Ending(
        causes=end.causes,
        source="ray",
        traceback=end.traceback,
        exit_code=end.exit_code,
        signal=end.signal,
        intended=end.intended,
        out_of_memory=end.out_of_memory,
        preempted=end.preempted or end.node_died,
        node=end.node,
        log_file=end.log_file,
        doing=doing,
    )
