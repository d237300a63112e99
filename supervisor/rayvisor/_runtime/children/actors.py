"""Children that are Ray actors of the user's own classes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio

from rayvisor._core.protocol.links import HostGoneError
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.children.actor_health import ActorHealthMonitor, ActorReports, process_lost, prove
from rayvisor._runtime.children.adopted import AdoptedIncarnation, ended_in_order
from rayvisor._runtime.children.protocol import StartIgnored, StartRefusedError, with_predecessor
from rayvisor.errors import ChildUnavailableError, RayvisorError
from rayvisor.faults import Cause, Termination
from rayvisor.specs import IgnoreStart

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActor, UserActorFactory
    from rayvisor._backends.ray.adopted import Adoption
    from rayvisor.faults import Exit
    from rayvisor.specs import ActorHook, ActorStart, AdoptStart, ChildSpec, Shutdown

__all__ = ["ActorBackend"]

_WITHHELD = {"SUSPECT": "not answering just now", "REQUESTED": "paused"}
PROOF_SECONDS = 10.0
"""How long the end of an actor, and the proof of it, may take."""


class ActorBackend:
    """Carries actor children.

    Parameters
    ----------
    open_place
        Makes the place where actors live.
    reports
        Who is told of doubts.
    """

    def __init__(self, open_place: Callable[[], Awaitable[UserActorFactory]], reports: ActorReports) -> None:
        self._open_place = open_place
        self.reports = reports
        self._place: UserActorFactory | None = None
        self._opening = anyio.Lock()
        self._current: dict[str, UserActor] = {}
        self._adoptions: dict[str, Adoption] = {}
        self._withheld: dict[str, str] = {}
        self._restarting: list[str] = []

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

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> ActorIncarnation | AdoptedIncarnation:
        """Make the carrier of an incarnation."""
        if self._place is None:
            raise RuntimeError("the place of the actors has not been opened")
        if getattr(spec.start, "kind", "") != "adopt":
            return ActorIncarnation(self, self._place, (child, incarnation), spec, predecessor)
        # Imported here: a tree without actors does not need Ray, nor wait for its import.
        from rayvisor._backends.ray.adopted import Adoption

        start = cast("AdoptStart", spec.start)
        adoption = self._adoptions.get(child)
        if adoption is None or adoption.start != start:
            adoption = self._adoptions[child] = Adoption(self._place, child, start)
        return AdoptedIncarnation(self, adoption, (child, incarnation), spec, predecessor)

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

    @contextmanager
    def restarting(self, path: str) -> Iterator[None]:
        """While this lasts, what is stopped at or below a path is stopped to be started again."""
        self._restarting.append(path)
        try:
            yield
        finally:
            self._restarting.remove(path)

    def restarted(self, child: str) -> bool:
        """Whether a child is stopped to be started again."""
        return any(not path or child == path or child.startswith(f"{path}/") for path in self._restarting)

    async def run(self, child: str, hook: ActorHook) -> Any:
        """Call a hook of the child's present incarnation."""
        return await self.actor(child).run(hook)

    def follow(self, effect: m.Effect) -> None:
        """Take note of which children get no new work."""
        if isinstance(effect, m.Removed):
            below = f"{effect.child}/"
            for path in [p for p in self._adoptions if p == effect.child or p.startswith(below)]:
                self._adoptions.pop(path).let_go()  # a handle that is kept would keep the actor
        elif isinstance(effect, m.Changed) and effect.chart == "actor":
            if effect.after.leaf in {"SUSPECT", "REQUESTED"}:
                self._withheld[effect.child] = _WITHHELD[effect.after.leaf]
            else:
                self._withheld.pop(effect.child, None)

    def withheld(self, child: str) -> str:
        """Why a child gets no new work though it is up; empty if it does."""
        return self._withheld.get(child, "")

    def reference(self, child: str) -> Any:
        """What leads other processes to an adopted child: its handle; None: they find it by its name."""
        adoption = self._adoptions.get(child)
        return None if adoption is None else adoption.handle

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
        if child in self._adoptions:
            self._adoptions[child].let_go()
        elif self._place is not None:
            await self._place.end_child(child, PROOF_SECONDS)

    async def close(self) -> None:
        """Kill what is left of all."""
        if self._place is not None:
            await self._place.close()


class ActorIncarnation:
    """One incarnation of an actor."""

    def __init__(
        self,
        backend: ActorBackend,
        place: UserActorFactory,
        who: tuple[str, int],
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> None:
        self._backend = backend
        self._place = place
        self._child, self._incarnation = who
        self._spec = spec
        self._start = cast("ActorStart", spec.start)
        self._predecessor = predecessor
        self._actor: UserActor | None = None
        self._doubted = False

    async def start(self) -> None:
        """Make the actor, and wait until its ``__init__`` has run."""
        start = self._start
        timeout = self._spec.start_timeout
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
            await actor.ready(max(0.1, timeout - (anyio.current_time() - began)), self._unreachable)
            left = max(0.1, timeout - (anyio.current_time() - began))
            await prove(actor, start.hooks, left, self._unreachable)
        except HostGoneError as gone:
            if gone.end.init_failed and any(cause.type == IgnoreStart.__name__ for cause in gone.end.causes):
                await self.clean()
                raise StartIgnored from None
            raise StartRefusedError(process_lost(gone.end, "starting")) from None
        except (RayvisorError, TimeoutError) as error:
            overdue = isinstance(error, TimeoutError)
            raise StartRefusedError(
                Termination(
                    causes=(Cause(type(error).__name__, str(error)),), overdue=overdue, phase="starting"
                )
            ) from None
        self._backend.up(self._child, actor)

    async def ended(self) -> Termination:
        """Wait until Ray says that it has ended."""
        actor: Any = self._actor
        who = (self._child, self._incarnation)
        ending = await ActorHealthMonitor(
            who, actor, self._start.hooks, self._backend.reports
        ).until_it_ends()
        self._left()
        return ending

    async def act(self, action: str) -> None:
        """Call a method of the user's: what it raises says that it does not help."""
        actor: Any = self._actor
        await actor.call(action)

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - actors are not told why
        """Ask it to end after the calls that wait already; then kill it."""
        self._left()
        if self._actor is None:
            return True
        if shutdown.seconds and await ended_in_order(self._actor, self._start.hooks, shutdown.seconds):
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

    def _unreachable(self, end: Termination) -> None:
        """Ray could not reach it while it came up: that may pass, and is told once."""
        if not self._doubted:
            self._doubted = True
            self._backend.reports.suspected(self._child, self._incarnation, "ray", end.causes)

    def _left(self) -> None:
        """It is no longer the child's present incarnation, if it was."""
        if self._actor is not None:
            self._backend.left(self._child, self._actor)
