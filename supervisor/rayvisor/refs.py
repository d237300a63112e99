"""References to children: they outlive the incarnations they lead to, and work from any process.

    ref = sup["router"]                        # in the driver
    worker.use.remote(ref)                     # pickled into another actor

    class Worker:
        async def use(self, router):
            return await router.call("route", request, idempotent=True)

A reference finds the present incarnation at each use. In the supervisor's own process it asks the
supervisor; elsewhere it asks Ray, by name, so that process has to be connected to the same cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio

from rayvisor._core.protocol.links import HostGoneError
from rayvisor.errors import ChildUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from rayvisor.records import Record
    from rayvisor.status import Node

__all__ = ["ChildRef", "ServerRef"]

ATTEMPTS = 3
"""On how many incarnations an idempotent call is tried: a call that kills whoever takes it must end."""
WAIT_SECONDS = 60.0
"""How long an idempotent call without a deadline waits for the next incarnation."""
LOOKUP_SECONDS = 10.0
PAUSE_SECONDS = 0.1


class _Actor(Protocol):
    """One incarnation, in the supervisor's process or found by name."""

    @property
    def handle(self) -> Any:
        """Ray's own."""
        ...

    @property
    def name(self) -> str:
        """Unique on the cluster."""
        ...

    async def call(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, timeout: float | None
    ) -> Any:
        """Call a method."""
        ...


class _Actors(Protocol):
    """The actor children of a tree, in the process of its supervisor."""

    @property
    def address(self) -> tuple[str, str] | None:
        """Namespace of the actors on the cluster and the prefix of their names."""
        ...

    def actor(self, child: str) -> _Actor:
        """Return the present incarnation; raise ChildUnavailableError if there is none."""
        ...

    def reference(self, child: str) -> Any:
        """Return the handle of an adopted actor, None for all others."""
        ...

    def withheld(self, child: str) -> str:
        """Say why a child that is up gets no new work; empty if it does."""
        ...

    async def changed(self, child: str) -> None:
        """Wait until the child has another incarnation, has lost its incarnation, or gets work again."""
        ...


class _Tree(Protocol):
    """A running tree, as a reference to a server needs it."""

    def status(self, path: str = "") -> Node:
        """Return a child as it is now."""
        ...

    def watch(self) -> AsyncIterator[Record]:
        """Return the records from now on."""
        ...


class ChildRef:
    """A child that is an actor: each use finds its present incarnation. Can be pickled.

    Attributes
    ----------
    path
        Of the child.

    Examples
    --------
    ``await sup["router"].call("route", request)`` calls a method, ``sup["router"].handle()`` gives Ray's
    own handle of the incarnation that is up now.
    """

    __slots__ = ("_actors", "_address", "_adopted", "path")

    def __init__(
        self,
        path: str,
        actors: _Actors | None,
        address: tuple[str, str] | None = None,
        adopted: Any = None,
    ) -> None:
        self.path = path
        self._actors = actors
        self._address = address
        self._adopted = adopted

    def __repr__(self) -> str:
        return f"<ChildRef {self.path}>"

    def __reduce__(self) -> tuple[type[ChildRef], tuple[str, None, tuple[str, str] | None, Any]]:
        address, adopted = self._address, self._adopted
        if self._actors is not None:
            address, adopted = self._actors.address, self._actors.reference(self.path)
        return (ChildRef, (self.path, None, address, adopted))

    def handle(self) -> Any:
        """Ray's handle of the present incarnation. Outside the supervisor's process it asks Ray, and blocks.

        Raises
        ------
        ChildUnavailableError
            There is none now.
        """
        if self._actors is not None:
            return self._actors.actor(self.path).handle
        if self._adopted is not None:
            return self._adopted
        # Imported here: a process that only hands references on needs no Ray.
        from rayvisor._backends.ray.lookup import find

        found = find(*self._names(), self.path)
        if found is None:
            raise ChildUnavailableError(self.path, "not up")
        return found.handle

    async def call(
        self, method: str, *args: Any, idempotent: bool = False, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Call a method of the present incarnation, and return its answer.

        In the supervisor's own process a call of a child that is paused, or SUSPECT, waits until it gets work
        again; ``handle()`` goes past that.

        Parameters
        ----------
        method, args, kwargs
            What to call.
        idempotent
            Whether the call may be carried out more than once. Then it waits for an incarnation where
            there is none, and is repeated, on at most three of them, when one ends under it. Otherwise
            it is never repeated.
        timeout
            Seconds for all of it. None: as long as the incarnation lives, and a minute for the next one.

        Raises
        ------
        ChildUnavailableError
            There is no incarnation, or it ended before it answered: it may have carried the call out.
        TimeoutError
            No answer within the deadline.
        """
        until = None if timeout is None else anyio.current_time() + timeout
        spent = ""
        attempt = 0
        while True:
            attempt += 1
            waits = idempotent or self._withheld
            actor = await (self._wait(spent, until) if waits else self._find())
            if actor is None:
                raise ChildUnavailableError(self.path, self._withheld or "not up")
            try:
                return await actor.call(method, args, kwargs, timeout=_left(until))
            except HostGoneError as gone:
                if not idempotent or attempt >= ATTEMPTS:
                    state = (
                        f"lost in the midst of {method}(), which it may have carried out ({gone.end.root})"
                    )
                    raise ChildUnavailableError(self.path, state) from None
                if not gone.end.unavailable:
                    spent = actor.name

    async def _wait(self, spent: str, until: float | None) -> _Actor | None:
        """Wait for an incarnation that is not spent."""
        with anyio.move_on_after(_left(until) if until is not None else WAIT_SECONDS):
            while True:
                actor = await self._find()
                if actor is not None and actor.name != spent and not self._withheld:
                    return actor
                if self._actors is None:
                    await anyio.sleep(PAUSE_SECONDS)
                else:
                    await self._actors.changed(self.path)
        return None

    @property
    def _withheld(self) -> str:
        """Why it gets no new work though it is up; empty where it does, or that is not known here."""
        return "" if self._actors is None else self._actors.withheld(self.path)

    async def _find(self) -> _Actor | None:
        if self._actors is not None:
            try:
                return self._actors.actor(self.path)
            except ChildUnavailableError:
                return None
        if self._adopted is not None:
            from rayvisor._backends.ray.lookup import FoundActor

            return FoundActor(self.path, 0, self._adopted)
        from rayvisor._backends.ray.lookup import find_in_thread

        return await find_in_thread(*self._names(), self.path, LOOKUP_SECONDS)

    def _names(self) -> tuple[str, str]:
        if self._address is None:
            raise ChildUnavailableError(self.path, "no actor on a Ray cluster")
        return self._address


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - anyio.current_time())


class ServerRef:
    """A server child: it outlives the incarnations, and knows where the present one is.

    Attributes
    ----------
    path
        Of the child.

    Examples
    --------
    ``await sup["web"].serving()`` waits until it serves and gives its URL; ``sup["web"].url`` is where it is
    now.
    """

    __slots__ = ("_supervisor", "path")

    def __init__(self, path: str, supervisor: _Tree) -> None:
        self.path = path
        self._supervisor = supervisor

    def __repr__(self) -> str:
        return f"<ServerRef {self.path}>"

    @property
    def url(self) -> str:
        """Where the present incarnation is: ``http://127.0.0.1:8000``.

        Raises
        ------
        ChildUnavailableError
            None is up now.
        """
        url = self._supervisor.status(self.path).url
        if not url:
            raise ChildUnavailableError(self.path, "not up")
        return url

    async def serving(self, timeout: float | None = None) -> str:
        """Wait until it serves, and return its URL.

        Parameters
        ----------
        timeout
            Seconds to wait. None: as long as it may come up.

        Raises
        ------
        ChildUnavailableError
            It is DEAD, or its tree has ended: it does not come up by itself.
        TimeoutError
            It did not serve in that time.
        """
        watch = self._supervisor.watch()
        with anyio.fail_after(timeout):
            while True:
                node = self._supervisor.status(self.path)
                if node.leaf == "SERVING" and node.url:
                    return node.url
                if node.state == "DEAD":
                    raise ChildUnavailableError(self.path, f"{node.state}.{node.leaf}")
                if await anext(watch, None) is None:
                    raise ChildUnavailableError(self.path, "down: its tree has ended")
