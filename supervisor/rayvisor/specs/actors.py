"""Ray actors as children: created by the supervisor, or adopted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

from rayvisor._redaction import masked_repr
from rayvisor._validation import one_of
from rayvisor.errors import SpecError
from rayvisor.specs.arguments import ActorArguments, AdoptArguments, actor_hooks, actor_options, complete
from rayvisor.specs.hooks import ActorHooks
from rayvisor.specs.placement import ActorOptions
from rayvisor.specs.tree import ChildSpec, Shutdown
from rayvisor.status import ChildKind

__all__ = ["ActorStart", "AdoptStart", "actor", "adopt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStart:
    """Start spec of a Ray actor of the user's class."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: ActorOptions = field(default_factory=ActorOptions)
    hooks: ActorHooks = field(default_factory=ActorHooks)
    kind: str = ChildKind.ACTOR

    def __repr__(self) -> str:
        return masked_repr(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptStart:
    """Start spec of a Ray actor that the program itself made."""

    actor: Any = None
    name: str = ""
    namespace: str = ""
    make: Callable[..., Any] | None = None
    on_end: str = "leave"
    hooks: ActorHooks = field(default_factory=ActorHooks)
    kind: str = ChildKind.ADOPT

    def __repr__(self) -> str:
        return masked_repr(self)


def actor(
    id: str,
    cls: type,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    shutdown: Shutdown | float = 5.0,
    start_timeout: float = 60.0,
    **arguments: Unpack[ActorArguments],
) -> ChildSpec:
    """Make a child of a Ray actor. Ray itself never restarts it: rayvisor does.

    If its ``__init__`` takes a keyword argument ``predecessor`` (and ``kwargs`` has none), that is the
    [`Exit`][rayvisor.Exit] of the previous incarnation; None at the first start.

    Parameters
    ----------
    id
        Name of the child.
    cls
        A plain class; not one that ``ray.remote`` has wrapped already.
    args, kwargs
        Arguments of its ``__init__`` at every start.
    shutdown, start_timeout
        As in [`ChildSpec`][rayvisor.ChildSpec].
    arguments
        When it is restarted ([`RestartArguments`][rayvisor.specs.RestartArguments]), which of its methods are
        called as hooks and probes ([`HookArguments`][rayvisor.specs.HookArguments]), and what it asks of Ray
        ([`PlacementArguments`][rayvisor.specs.PlacementArguments]).

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> rv.actor("index", Index, probe="ping", drain="flush", shutdown=30.0)
    """
    given = complete("actor", ActorArguments, arguments)
    if not isinstance(cls, type):
        raise SpecError(
            "cls", cls, "must be a plain class; give the class itself, not what ray.remote made of it"
        )
    return ChildSpec(
        id=id,
        start=ActorStart(
            cls=cls,
            args=tuple(args),
            kwargs=dict(kwargs or {}),
            options=actor_options(given),
            hooks=actor_hooks(given),
        ),
        restart=given["restart"],
        shutdown=shutdown,
        significant=given["significant"],
        backoff=given["backoff"],
        start_timeout=start_timeout,
    )


def adopt(
    id: str,
    actor: Any = None,
    *,
    name: str = "",
    namespace: str = "",
    make: Callable[..., Any] | None = None,
    on_end: Literal["leave", "kill"] = "leave",
    shutdown: Shutdown | float = 5.0,
    start_timeout: float = 60.0,
    **arguments: Unpack[AdoptArguments],
) -> ChildSpec:
    """Make a child of a Ray actor that the program itself made.

    It is watched from outside and keeps its main thread. Each of its lives is an incarnation. If Ray itself
    restarts it (``max_restarts`` is not 0), that is observed: the child is RESTARTING until it is back, and
    nothing is counted or decided (`records.DecisionMade` says ``observe``). When Ray has given it up, or
    never restarts it, its end is a fault like any other, answered by ``make``, or by the next actor of that
    ``name``. Without either it cannot be recreated: the fault is PERMANENT, and the child is DEAD.FAILED.

    When rayvisor decides on a restart (a sibling's end under ``ONE_FOR_ALL``, an unanswered probe, an
    operator) it uses ``ray.kill(no_restart=False)``, or ends the actor and calls ``make``. An actor that
    cannot be recreated is left as it is.

    Parameters
    ----------
    id
        Name of the child.
    actor
        Ray's handle of it.
    name, namespace
        Or the name by which ``ray.get_actor`` finds it (a detached actor, for example), in this namespace;
        empty: the program's own. It is awaited until ``start_timeout``.
    make
        A function that makes the next actor, and the first one if neither ``actor`` nor ``name`` leads to
        one; it returns its handle. It runs in a thread. If it takes a keyword argument ``predecessor``, that
        is the [`Exit`][rayvisor.Exit] of the previous incarnation.
    on_end
        What happens to it when the child is stopped, or the tree ends. ``"leave"``: it continues, and is no
        longer watched. ``"kill"``: it is drained, asked to end within ``shutdown``, then killed for good.
    shutdown, start_timeout
        As in [`ChildSpec`][rayvisor.ChildSpec].
    arguments
        When it is restarted ([`RestartArguments`][rayvisor.specs.RestartArguments]), and which of its methods
        are called as hooks and probes ([`HookArguments`][rayvisor.specs.HookArguments]). An actor that is
        left alone is not drained.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> trainer = Trainer.options(max_restarts=-1).remote()
    >>> rv.adopt("trainer", trainer, probe="ping")
    >>> rv.adopt("registry", name="registry", namespace="prod")
    """
    given = complete("adopt", AdoptArguments, arguments)
    if actor is not None and not (hasattr(actor, "_actor_id") and type(actor).__module__.startswith("ray.")):
        raise SpecError("actor", actor, "must be Ray's handle of an actor: what Class.remote() returned")
    if actor is not None and name:
        raise SpecError("name", name, "is for an actor without a handle; give one of the two")
    if actor is None and not name and make is None:
        raise SpecError("actor", None, "is missing; give a handle, a name, or a function that makes it")
    if namespace and not name:
        raise SpecError("namespace", namespace, "is missing a name")
    if inspect.iscoroutinefunction(make):
        raise SpecError(
            "make", make, "must be a function that returns the handle of an actor, not an async one"
        )
    one_of("on_end", on_end, ("leave", "kill"))
    return ChildSpec(
        id=id,
        start=AdoptStart(
            actor=actor,
            name=name,
            namespace=namespace,
            make=make,
            on_end=on_end,
            hooks=actor_hooks(given),
        ),
        restart=given["restart"],
        shutdown=shutdown,
        significant=given["significant"],
        backoff=given["backoff"],
        start_timeout=start_timeout,
    )
