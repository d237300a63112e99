"""References to children: they outlive the incarnations they lead to, and work from any process.

    ref = sup["router"]                        # in the driver
    worker.use.remote(ref)                     # pickled into another actor

    class Worker:
        async def use(self, router):
            return await router.options(idempotent=True).call("route", request)

A reference finds the current incarnation at each use. In the supervisor's own process it asks the
supervisor; elsewhere it asks Ray, by name, so that process must be connected to the same cluster.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from rayvisor._core.protocol.links import HostGoneError
from rayvisor._validation import seconds
from rayvisor.errors import ChildUnavailableError, SpecError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import EllipsisType

    from rayvisor.records import Record
    from rayvisor.status import Node

__all__ = ["ChildRef", "ServerRef"]

ATTEMPTS = 3
"""How many incarnations an idempotent call is tried on: a call that kills each one must still end."""


class _Actor(Protocol):
    """One incarnation, in the supervisor's process or found by name."""

    @property
    def handle(self) -> Any:
        """Ray's own handle."""
        ...

    @property
    def name(self) -> str:
        """Name that is unique on the cluster."""
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
        """Return the current incarnation; raise ChildUnavailableError if there is none."""
        ...

    def reference(self, child: str) -> Any:
        """Return the handle of an adopted actor, None for all others."""
        ...

    def withheld(self, child: str) -> str:
        """Return why a child that is up gets no new work; empty if it does."""
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
    """A reference to a child that is an actor: each use finds its current incarnation. Can be pickled.

    Attributes
    ----------
    path
        Path of the child.

    Examples
    --------
    ``await sup["router"].call("route", request)`` calls a method,
    ``await sup["router"].options(idempotent=True, timeout=5.0).call("route", request)`` repeats it on the
    next incarnation if need be, and ``sup["router"].handle()`` returns Ray's own handle of the incarnation
    that is up now.
    """

    __slots__ = ("_actors", "_address", "_adopted", "_idempotent", "_timeout", "_timeouts", "path")

    def __init__(
        self,
        path: str,
        actors: _Actors | None,
        address: tuple[str, str] | None = None,
        adopted: Any = None,
        *,
        idempotent: bool = False,
        timeout: float | None = None,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self.path = path
        self._actors = actors
        self._address = address
        self._adopted = adopted
        self._idempotent = idempotent
        self._timeout = timeout
        self._timeouts = timeouts

    def __repr__(self) -> str:
        return f"<ChildRef {self.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        address, adopted = self._address, self._adopted
        if self._actors is not None:
            address, adopted = self._actors.address, self._actors.reference(self.path)
        made = functools.partial(
            ChildRef, idempotent=self._idempotent, timeout=self._timeout, timeouts=self._timeouts
        )
        return (made, (self.path, None, address, adopted))

    def options(
        self, *, idempotent: bool | EllipsisType = ..., timeout: float | EllipsisType | None = ...
    ) -> ChildRef:
        """Return a reference to the same child whose calls have these options; this one is unchanged.

        An option that is not given keeps its value. The new reference can be kept, shared and pickled.

        Parameters
        ----------
        idempotent
            Whether a call may be carried out more than once. Then it waits for an incarnation where there is
            none, and is repeated, on at most three of them, when one ends under it. False, the default: it is
            never repeated.
        timeout
            Seconds for a whole call, repetitions included. None, the default: as long as the incarnation
            lives, and a minute for the next one.

        Raises
        ------
        SpecError
            When a value cannot work.

        Examples
        --------
        >>> router = sup["router"].options(idempotent=True, timeout=5.0)
        >>> await router.call("route", request, timeout=3)  # this timeout is an argument of the method
        """
        if idempotent is ...:
            idempotent = self._idempotent
        elif not isinstance(idempotent, bool):
            raise SpecError("idempotent", idempotent, "must be True or False")
        if timeout is ...:
            timeout = self._timeout
        elif timeout is not None:
            seconds("timeout", timeout)
        return ChildRef(
            self.path,
            self._actors,
            self._address,
            self._adopted,
            idempotent=idempotent,
            timeout=timeout,
            timeouts=self._timeouts,
        )

    def handle(self) -> Any:
        """Return Ray's handle of the current incarnation.

        Outside the supervisor's process this asks Ray, and blocks.

        Raises
        ------
        ChildUnavailableError
            There is no incarnation now.
        """
        if self._actors is not None:
            return self._actors.actor(self.path).handle
        if self._adopted is not None:
            return self._adopted
        # Imported here: a process that only passes references on needs no Ray.
        from rayvisor._backends.ray.lookup import find

        found = find(*self._names(), self.path)
        if found is None:
            raise ChildUnavailableError(self.path, "not up")
        return found.handle

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the current incarnation, and return its answer.

        All arguments but the first belong to the method, whatever their names; `options` sets a timeout, and
        whether the call may be repeated. In the supervisor's own process a call of a child that is paused, or
        SUSPECT, waits until the child gets work again; `handle` does not wait for that.

        Parameters
        ----------
        method
            Name of the method.
        args, kwargs
            Arguments of the method.

        Raises
        ------
        ChildUnavailableError
            There is no incarnation, or it ended before it answered: it may have carried out the call.
        TimeoutError
            No answer within the ``timeout`` of `options`.
        """
        until = None if self._timeout is None else anyio.current_time() + self._timeout
        spent = ""
        attempt = 0
        while True:
            attempt += 1
            waits = self._idempotent or self._withheld
            actor = await (self._wait(spent, until) if waits else self._find())
            if actor is None:
                raise ChildUnavailableError(self.path, self._withheld or "not up")
            try:
                return await actor.call(method, args, kwargs, timeout=_left(until))
            except HostGoneError as gone:
                if not self._idempotent or attempt >= ATTEMPTS:
                    raise ChildUnavailableError(
                        self.path,
                        f"lost during {method}(), which it may have carried out",
                        cause=gone.end.root,
                    ) from None
                if not gone.end.unavailable:
                    spent = actor.name

    async def _wait(self, spent: str, until: float | None) -> _Actor | None:
        """Wait for an incarnation that is not spent."""
        with anyio.move_on_after(self._timeouts.next_incarnation if until is None else _left(until)):
            while True:
                actor = await self._find()
                if actor is not None and actor.name != spent and not self._withheld:
                    return actor
                if self._actors is None:
                    await anyio.sleep(self._timeouts.actor_lookup_retry)
                else:
                    await self._actors.changed(self.path)
        return None

    @property
    def _withheld(self) -> str:
        """Why the child gets no new work though it is up; empty if it does, or if that is not known here."""
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

        return await find_in_thread(*self._names(), self.path, self._timeouts.actor_lookup)

    def _names(self) -> tuple[str, str]:
        if self._address is None:
            raise ChildUnavailableError(self.path, "no actor on a Ray cluster")
        return self._address


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - anyio.current_time())


class ServerRef:
    """A reference to a server child: it outlives the incarnations, and knows the URL of the current one.

    Attributes
    ----------
    path
        Path of the child.

    Examples
    --------
    ``await sup["web"].serving()`` waits until the server serves and returns its URL;
    ``sup["web"].url`` is its URL now.
    """

    __slots__ = ("_supervisor", "path")

    def __init__(self, path: str, supervisor: _Tree) -> None:
        self.path = path
        self._supervisor = supervisor

    def __repr__(self) -> str:
        return f"<ServerRef {self.path}>"

    @property
    def url(self) -> str:
        """URL of the current incarnation: ``http://127.0.0.1:8000``.

        Raises
        ------
        ChildUnavailableError
            No incarnation is up now.
        """
        url = self._supervisor.status(self.path).url
        if not url:
            raise ChildUnavailableError(self.path, "not up")
        return url

    async def serving(self, timeout: float | None = None) -> str:
        """Wait until the server serves, and return its URL.

        Parameters
        ----------
        timeout
            Seconds to wait. None: as long as the server can still come up.

        Raises
        ------
        ChildUnavailableError
            The server is DEAD, or its tree has ended: it does not come up by itself.
        TimeoutError
            The server did not serve in that time.
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
