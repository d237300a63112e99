"""Children that are Ray actors of the user's own classes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio

from rayvisor._core.paths import contains
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.children.actor_health import ActorHealthMonitor, ActorReports, process_lost, prove
from rayvisor._runtime.children.adopted import AdoptedIncarnation, ended_in_order
from rayvisor._runtime.children.protocol import StartIgnored, StartRefusedError, with_predecessor
from rayvisor._runtime.path_map import PathMap
from rayvisor.errors import ChildUnavailableError, RayvisorError
from rayvisor.faults import Cause, Termination
from rayvisor.specs import IgnoreStart
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActor, UserActorFactory
    from rayvisor._backends.ray.adopted import Adoption
    from rayvisor.faults import Exit
    from rayvisor.specs import ActorHook, ActorStart, AdoptStart, ChildSpec, Shutdown

__all__ = ["ActorBackend"]

_WITHHELD = {"SUSPECT": "not answering just now", "REQUESTED": "paused"}


class ActorBackend:
    """Runs actor children.

    Parameters
    ----------
    open_factory
        Creates the factory of the actors.
    reports
        Receives suspicions.
    timeouts
        Timeouts of what its incarnations do.
    """

    def __init__(
        self,
        open_factory: Callable[[], Awaitable[UserActorFactory]],
        reports: ActorReports,
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self._open_factory = open_factory
        self.reports = reports
        self.timeouts = timeouts
        self._factory: UserActorFactory | None = None
        self._opening = anyio.Lock()
        self._current: dict[str, UserActor] = {}
        self._adoptions: PathMap[Adoption] = PathMap()
        self._withheld: dict[str, str] = {}
        self._restarting: list[str] = []
        # Set when an incarnation of the child comes or goes, or the child gets work again.
        self._changes: dict[str, anyio.Event] = {}

    async def open(self) -> None:
        """Connect to Ray."""
        async with self._opening:
            if self._factory is None:
                self._factory = await self._open_factory()

    @property
    def address(self) -> tuple[str, str] | None:
        """Namespace and name prefix by which other processes find the actors on the cluster."""
        factory = self._factory
        return None if factory is None else (factory.cluster.namespace, factory.prefix)

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> ActorIncarnation | AdoptedIncarnation:
        """Create an incarnation; nothing is started by it."""
        if self._factory is None:
            raise RuntimeError("the factory of the actors has not been opened")
        if getattr(spec.start, "kind", "") != "adopt":
            return ActorIncarnation(self, self._factory, (child, incarnation), spec, predecessor)
        # Imported here: a tree without actors needs no Ray, and does not wait for its import.
        from rayvisor._backends.ray.adopted import Adoption

        start = cast("AdoptStart", spec.start)
        adoption = self._adoptions.get(child)
        if adoption is None or adoption.start != start:
            adoption = self._adoptions[child] = Adoption(self._factory, child, start)
        return AdoptedIncarnation(self, adoption, (child, incarnation), spec, predecessor)

    def actor(self, child: str) -> UserActor:
        """Return the child's current incarnation.

        Raises
        ------
        ChildUnavailableError
            There is none now.
        """
        actor = self._current.get(child)
        if actor is None:
            raise ChildUnavailableError(child, "not up")
        return actor

    @contextmanager
    def restarting(self, path: str) -> Iterator[None]:
        """Within this block, what is stopped at or below a path is stopped to be started again."""
        self._restarting.append(path)
        try:
            yield
        finally:
            self._restarting.remove(path)

    def restarted(self, child: str) -> bool:
        """Whether a child is stopped to be started again."""
        return any(contains(path, child) for path in self._restarting)

    async def run(self, child: str, hook: ActorHook) -> Any:
        """Call a hook of the child's current incarnation."""
        return await self.actor(child).run(hook)

    def observe(self, effect: m.Effect) -> None:
        """Record which children get no new work, and let go of those that are removed."""
        if isinstance(effect, m.Removed):
            for path in list(self._adoptions.below(effect.child)):
                self._adoptions.pop(path).let_go()  # Ray keeps an actor as long as a handle of it exists
        elif isinstance(effect, m.Changed) and effect.chart == "actor":
            if effect.after.leaf in {"SUSPECT", "REQUESTED"}:
                self._withheld[effect.child] = _WITHHELD[effect.after.leaf]
            else:
                self._withheld.pop(effect.child, None)
                self._notify(effect.child)

    def withheld(self, child: str) -> str:
        """Return why a child that is up gets no new work; empty if it does."""
        return self._withheld.get(child, "")

    def reference(self, child: str) -> Any:
        """Return the handle of an adopted actor, for other processes; None: they find it by its name."""
        adoption = self._adoptions.get(child)
        return None if adoption is None else adoption.handle

    def up(self, child: str, actor: UserActor) -> None:
        """Record which actor is the child's current incarnation."""
        self._current[child] = actor
        self._notify(child)

    async def changed(self, child: str) -> None:
        """Wait until the child has another incarnation, has lost its incarnation, or gets work again."""
        await self._changes.setdefault(child, anyio.Event()).wait()

    def _notify(self, child: str) -> None:
        event = self._changes.pop(child, None)
        if event is not None:
            event.set()

    def left(self, child: str, actor: UserActor) -> None:
        """Record that an actor is no longer the child's current incarnation."""
        if self._current.get(child) is actor:
            del self._current[child]
            self._notify(child)

    async def release(self, child: str) -> None:
        """Kill what is left of the child, and remove its placement group."""
        self._current.pop(child, None)
        if child in self._adoptions:
            self._adoptions[child].let_go()
        elif self._factory is not None:
            await self._factory.end_child(child, self.timeouts.proof)

    async def close(self) -> None:
        """Kill what is left of all children."""
        if self._factory is not None:
            await self._factory.close()


class ActorIncarnation:
    """One incarnation of an actor."""

    def __init__(
        self,
        backend: ActorBackend,
        factory: UserActorFactory,
        subject: tuple[str, int],
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> None:
        self._backend = backend
        self._factory = factory
        self._child, self._incarnation = subject
        self._spec = spec
        self._start = cast("ActorStart", spec.start)
        self._predecessor = predecessor
        self._actor: UserActor | None = None
        self._doubted = False

    async def start(self) -> None:
        """Create the actor, and wait until its ``__init__`` has run."""
        start = self._start
        timeout = self._spec.start_timeout
        began = anyio.current_time()
        try:
            self._actor = actor = await self._factory.create(
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
        """Wait until it has ended."""
        actor: Any = self._actor
        subject = (self._child, self._incarnation)
        termination = await ActorHealthMonitor(
            subject,
            actor,
            self._start.hooks,
            self._backend.reports,
            timeouts=self._backend.timeouts,
        ).until_it_ends()
        self._left()
        return termination

    async def act(self, action: str) -> None:
        """Call the user's recovery method; it has failed if it raises."""
        actor: Any = self._actor
        await actor.call(action)

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - an actor does not learn the reason
        """Ask it to end after the calls that are queued; then kill it."""
        self._left()
        if self._actor is None:
            return True
        if shutdown.seconds and await ended_in_order(self._actor, self._start.hooks, shutdown.seconds):
            await self._factory.forget(self._actor)
            return True
        return await self.clean()

    async def clean(self) -> bool:
        """Kill it."""
        self._left()
        if self._actor is None:
            return True
        gone = await self._actor.kill(self._backend.timeouts.proof)
        if gone:
            await self._factory.forget(self._actor)
        return gone

    def _unreachable(self, end: Termination) -> None:
        """Report, once, that Ray could not reach it during its start; that may pass."""
        if not self._doubted:
            self._doubted = True
            self._backend.reports.suspected(self._child, self._incarnation, "ray", end.causes)

    def _left(self) -> None:
        """Record that it is no longer the child's current incarnation, if it was."""
        if self._actor is not None:
            self._backend.left(self._child, self._actor)
