"""Ray actors as children: created by the supervisor, or adopted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayvisor._validation import one_of
from rayvisor.errors import SpecError
from rayvisor.specs.backoff import Backoff
from rayvisor.specs.hooks import ActorHook, ActorHooks, hooks_of
from rayvisor.specs.placement import ActorOptions, NodePin, PlacementOptions
from rayvisor.specs.tree import ChildSpec, Restart, Shutdown

__all__ = ["ActorStart", "AdoptStart", "actor", "adopt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStart:
    """A Ray actor of the user's own class."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: ActorOptions = field(default_factory=ActorOptions)
    hooks: ActorHooks = field(default_factory=ActorHooks)
    kind: str = "actor"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptStart:
    """A Ray actor that somebody else made."""

    actor: Any = None
    name: str = ""
    namespace: str = ""
    make: Callable[..., Any] | None = None
    on_end: str = "leave"
    hooks: ActorHooks = field(default_factory=ActorHooks)
    kind: str = "adopt"


def actor(  # noqa: PLR0913 - keywords, each of its own meaning
    id: str,  # noqa: A002 - OTP's word for it
    cls: type,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = 5.0,
    significant: bool = False,
    backoff: Backoff | None = None,
    start_timeout: float = 60.0,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    scheduling: str | NodePin | None = None,
    placement: PlacementOptions | None = None,
    probe: ActorHook | None = None,
    probe_interval: float = 2.0,
    probe_timeout: float = 5.0,
    failure_threshold: tuple[int, int] = (3, 5),
    stall_after: float = 30.0,
    pause: ActorHook | None = None,
    resume: ActorHook | None = None,
    drain: ActorHook | None = None,
) -> ChildSpec:
    """Make a child of a Ray actor. Ray itself never restarts it: rayvisor does.

    If its ``__init__`` takes a keyword argument ``predecessor`` (and ``kwargs`` has none), it is given the
    [`Exit`][rayvisor.Exit] of the incarnation before it; None at the first start.

    Parameters
    ----------
    id
        Name of the child.
    cls
        A plain class; not one that ``ray.remote`` has wrapped already.
    args, kwargs
        What its ``__init__`` gets, at every start.
    restart, shutdown, significant, backoff, start_timeout
        As in [`ChildSpec`][rayvisor.ChildSpec].
    num_cpus, num_gpus, resources, memory, runtime_env
        Passed through to Ray as they are.
    scheduling
        ``"DEFAULT"``, ``"SPREAD"``, or a node to pin it to.
    placement
        A placement group of its own: made once, reused by all its incarnations, removed with it.
    probe, pause, resume, drain
        What it can be asked to do: each the name of a method without arguments, or a function that takes
        Ray's handle of it (async, or one that returns an object reference, or one that blocks: that runs in a
        thread). They run where the actor's other methods run, between them, in its main thread.

        ``probe`` proves that it works, by returning anything but False. It serves only once the first probe
        was answered. ``pause`` and ``resume`` are called when `Supervisor.pause` and `resume` (or an
        operator) hold it and let it go on, ``pause`` also when it comes up again while it is held; they have
        60 seconds and three tries. ``drain`` is called before it is asked to end, within its ``shutdown``
        time.
    probe_interval
        Seconds between two probes.
    probe_timeout
        Seconds after which a probe counts as missed. It is waited for all the same: there is never more than
        one.
    failure_threshold
        ``(k, n)``: with ``k`` of the last ``n`` probes missed it is SUSPECT, and gets no new work.
    stall_after
        Seconds without an answered probe after which it is ended and restarted (FATAL). Choose it longer than
        the longest call of the actor: a probe waits its turn.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> rv.actor("index", Index, probe="ping", drain="flush", shutdown=30.0)
    """
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
            options=ActorOptions(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=dict(resources or {}),
                memory=memory,
                runtime_env=dict(runtime_env or {}),
                scheduling=scheduling,
                placement=placement,
            ),
            hooks=hooks_of(
                probe=probe,
                pause=pause,
                resume=resume,
                drain=drain,
                probe_interval=probe_interval,
                probe_timeout=probe_timeout,
                failure_threshold=failure_threshold,
                stall_after=stall_after,
            ),
        ),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        backoff=backoff,
        start_timeout=start_timeout,
    )


def adopt(  # noqa: PLR0913 - keywords, each of its own meaning
    id: str,  # noqa: A002 - OTP's word for it
    actor: Any = None,
    *,
    name: str = "",
    namespace: str = "",
    make: Callable[..., Any] | None = None,
    on_end: Literal["leave", "kill"] = "leave",
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = 5.0,
    significant: bool = False,
    backoff: Backoff | None = None,
    start_timeout: float = 60.0,
    probe: ActorHook | None = None,
    probe_interval: float = 2.0,
    probe_timeout: float = 5.0,
    failure_threshold: tuple[int, int] = (3, 5),
    stall_after: float = 30.0,
    pause: ActorHook | None = None,
    resume: ActorHook | None = None,
    drain: ActorHook | None = None,
) -> ChildSpec:
    """Make a child of a Ray actor that somebody else made.

    It is watched from outside and keeps its main thread. Each of its lives is an incarnation. Where Ray
    itself restarts it (``max_restarts`` is not 0), that is observed: the child is RESTARTING until it is
    back, and nothing is counted or decided (`records.DecisionMade` says ``observe``). When Ray has given it
    up, or never restarts it, its end is a fault like any other, answered by ``make``, or by the next actor of
    that ``name``. Without either nobody can make it again: the fault is PERMANENT, and the child is
    DEAD.FAILED.

    Where rayvisor decides on a restart (a sibling's end under ``ONE_FOR_ALL``, a probe that is not answered,
    an operator) it uses ``ray.kill(no_restart=False)``, or ends it and calls ``make``. One that nobody could
    make again is left as it is.

    Parameters
    ----------
    id
        Name of the child.
    actor
        Ray's handle of it.
    name, namespace
        Or the name by which ``ray.get_actor`` finds it (a detached actor, for example), in this namespace;
        empty: the program's own. It is waited for until ``start_timeout``.
    make
        A function that makes the next one, and the first one where neither ``actor`` nor ``name`` leads to
        one; it returns its handle. It runs in a thread. If it takes a keyword argument ``predecessor`` it is
        given the [`Exit`][rayvisor.Exit] of the incarnation before.
    on_end
        What becomes of it when the child is stopped, or the tree ends. ``"leave"``: it goes on, and is
        watched no more. ``"kill"``: it is drained, asked to end within ``shutdown``, then killed for good.
    restart, shutdown, significant, backoff, start_timeout
        As in [`ChildSpec`][rayvisor.ChildSpec].
    probe, probe_interval, probe_timeout, failure_threshold, stall_after, pause, resume, drain
        As in [`actor`][rayvisor.actor]. One that is left alone is not drained.

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
    hooks = hooks_of(
        probe=probe,
        pause=pause,
        resume=resume,
        drain=drain,
        probe_interval=probe_interval,
        probe_timeout=probe_timeout,
        failure_threshold=failure_threshold,
        stall_after=stall_after,
    )
    return ChildSpec(
        id=id,
        start=AdoptStart(actor=actor, name=name, namespace=namespace, make=make, on_end=on_end, hooks=hooks),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        backoff=backoff,
        start_timeout=start_timeout,
    )
