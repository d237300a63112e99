"""Children that are Ray actors created elsewhere: they are adopted, and let go again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from rayvisor._core.protocol.causes import in_one_line
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._core.supervision.messages import FOR_A_RESTART
from rayvisor._log import get_logger
from rayvisor._runtime.children.actor_health import ActorHealthMonitor, ActorReports, process_lost, prove
from rayvisor._runtime.children.protocol import StartRefusedError, with_predecessor
from rayvisor._runtime.deadlines import must_pass
from rayvisor.errors import RayvisorError
from rayvisor.faults import Cause, Termination

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActor
    from rayvisor._backends.ray.adopted import Adoption
    from rayvisor.faults import Exit
    from rayvisor.specs import ActorHooks, ChildSpec, Shutdown
    from rayvisor.timeouts import RuntimeTimeouts

__all__ = ["AdoptedIncarnation", "ended_in_order"]

log = get_logger("rayvisor.actors")

ENDLESS_SECONDS = 365.0 * 86400
CANNOT = "CannotBeRecreated"


class _Backend(Protocol):
    """Records which actor is the child's current incarnation."""

    reports: ActorReports
    timeouts: RuntimeTimeouts

    def up(self, child: str, actor: UserActor) -> None: ...

    def left(self, child: str, actor: UserActor) -> None: ...

    def restarted(self, child: str) -> bool: ...


class AdoptedIncarnation:
    """One incarnation of an adopted actor: between two restarts by Ray, or two creations."""

    def __init__(
        self,
        backend: _Backend,
        adoption: Adoption,
        subject: tuple[str, int],
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> None:
        self._backend = backend
        self._adoption = adoption
        self._subject = subject
        self._timeout = spec.start_timeout
        self._predecessor = predecessor
        self._actor: UserActor | None = None

    @property
    def _hooks(self) -> ActorHooks:
        return self._adoption.start.hooks

    async def start(self) -> None:
        """Find or create the actor, and wait until it is alive and has answered its first probe."""
        child, incarnation = self._subject
        make = self._adoption.start.make
        made_with = {} if make is None else with_predecessor(make, self._predecessor)
        began = anyio.current_time()
        try:
            self._actor = actor = await self._adoption.come_up(incarnation, self._timeout, made_with)
            await prove(actor, self._hooks, max(0.1, self._timeout - (anyio.current_time() - began)))
        except HostGoneError as gone:
            raise StartRefusedError(self._lost(process_lost(gone.end, "starting"))) from None
        except (RayvisorError, TimeoutError) as error:
            overdue = isinstance(error, TimeoutError)
            causes = (Cause(type(error).__name__, str(error)),)
            raise StartRefusedError(
                Termination(causes=causes, source="ray", overdue=overdue, phase="starting")
            ) from None
        self._backend.up(child, actor)

    async def ended(self) -> Termination:
        """Wait until this incarnation has ended."""
        actor: Any = self._actor
        termination = await ActorHealthMonitor(
            self._subject,
            actor,
            self._hooks,
            self._backend.reports,
            timeouts=self._backend.timeouts,
        ).until_it_ends()
        self._left()
        if termination.restarted_by_ray or self._adoption.renewable(actor):
            return termination
        return self._lost(termination)

    async def act(self, action: str) -> None:
        """Call the user's recovery method; it has failed if it raises."""
        actor: Any = self._actor
        await actor.call(action)

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:
        """Begin its next incarnation for a restart; otherwise let it go, or end it, as ``on_end`` says."""
        self._left()
        actor = self._actor
        if actor is None:
            return True
        restarted = reason in FOR_A_RESTART or self._backend.restarted(self._subject[0])
        for_good = self._adoption.start.on_end == "kill" and not restarted
        again = restarted and self._adoption.renewable(actor)
        if not for_good and not again:
            self._adoption.let_go()
            return True
        grace = shutdown.seconds or 0.0
        if grace and for_good and await ended_in_order(actor, self._hooks, grace):
            return True
        if grace and again:
            await drained(actor, self._hooks, grace)
        return await self._adoption.renew(actor, for_good=for_good)

    async def clean(self) -> bool:
        """End an actor that is still alive, if the next incarnation can follow."""
        self._left()
        actor = self._actor
        if actor is None or _over(actor):
            return True
        if self._adoption.renewable(actor):
            return await self._adoption.renew(actor)
        log.warning("actor.kept", child=self._subject[0], why="it cannot be recreated")
        return False

    def _lost(self, termination: Termination) -> Termination:
        """Mark the end as final if the actor cannot be recreated."""
        if self._adoption.replaceable or termination.intended:
            return termination
        why = "it was adopted without make= and without a name, and Ray does not restart it"
        return replace(termination, causes=(Cause(CANNOT, why), *termination.causes), permanent=True)

    def _left(self) -> None:
        if self._actor is not None:
            self._backend.left(self._subject[0], self._actor)


def _over(actor: UserActor) -> bool:
    snapshot = actor.snapshot
    return snapshot.state is snapshot.state.DEAD or snapshot.restarts != actor.ray_restarts


async def drained(actor: UserActor, hooks: ActorHooks, seconds: float) -> float:
    """Call the drain hook of an actor, for at most ``seconds``; return the seconds that are left."""
    if hooks.drain is None:
        return seconds
    began = anyio.current_time()
    try:
        with anyio.fail_after(seconds):
            await actor.run(hooks.drain)
    except BaseException as error:
        if must_pass(error):
            raise
        log.warning("actor.not_drained", actor=actor.name, why=in_one_line(error)[:500])
    return seconds - (anyio.current_time() - began)


async def ended_in_order(actor: UserActor, hooks: ActorHooks, seconds: float) -> bool:
    """Drain an actor and ask it to end, within ``seconds``; return whether it has ended."""
    grace = ENDLESS_SECONDS if math.isinf(seconds) else seconds
    left = await drained(actor, hooks, grace)
    return left > 0 and await actor.terminate(left) is not None
