"""The children of a tree: what each function here makes is a ``ChildSpec``.

>>> import rayvisor as rv
>>> spec = rv.SupervisorSpec(
...     intensity=3, period=900.0,
...     children=[rv.engine_pool("llm", engine_args={"model": "/models/small"}, size=2)],
... )
>>> [child.id for child in spec.children[0].start.children]
['1', '2']
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayvisor._engine.link import ActorOptions, NodePin, PlacementOptions
from rayvisor.engines import EnginePoolSpec, EngineStart, engine_group, engine_pool
from rayvisor.errors import SpecError
from rayvisor.servers import ServerStart, server
from rayvisor.specs import Backoff, ChildSpec, Restart, Shutdown, SupervisorSpec

__all__ = [
    "ActorStart",
    "CoroutineStart",
    "EnginePoolSpec",
    "EngineStart",
    "IgnoreStart",
    "ServerStart",
    "SupervisorStart",
    "actor",
    "coroutine",
    "engine_group",
    "engine_pool",
    "server",
    "subtree",
]


class IgnoreStart(Exception):  # noqa: N818 - what the start does, and no error
    """Raise it in a start that chooses not to run (OTP: ``ignore``).

    In a coroutine before it calls ``task_status.started()``, in the ``__init__`` of an actor, in the
    function of a [`subtree`][rayvisor.subtree]. The child is then down, its supervisor goes on; its spec
    is kept (unless it is temporary), and ``restart_child`` asks again.

    Examples
    --------
    >>> async def archive(*, task_status: anyio.abc.TaskStatus[None]) -> None:
    ...     if not ARCHIVE.exists():
    ...         raise rv.IgnoreStart("nothing to archive")
    ...     task_status.started()
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStart:
    """A Ray actor of the user's own class."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: ActorOptions = field(default_factory=ActorOptions)
    kind: str = "actor"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoroutineStart:
    """An async function in the supervisor's own process."""

    function: Callable[..., Awaitable[object]]
    args: tuple[Any, ...] = ()
    kind: str = "coroutine"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStart:
    """A supervisor whose spec a function makes anew at each of its starts (OTP: ``init``)."""

    function: Callable[..., SupervisorSpec | Awaitable[SupervisorSpec]]
    args: tuple[Any, ...] = ()
    kind: str = "supervisor"


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
    start_deadline: float = 60.0,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    scheduling: str | NodePin | None = None,
    placement: PlacementOptions | None = None,
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
    restart, shutdown, significant, backoff, start_deadline
        As in [`ChildSpec`][rayvisor.ChildSpec].
    num_cpus, num_gpus, resources, memory, runtime_env
        Passed through to Ray as they are.
    scheduling
        ``"DEFAULT"``, ``"SPREAD"``, or a node to pin it to.
    placement
        A placement group of its own: made once, reused by all its incarnations, removed with it.
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
        ),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        backoff=backoff,
        start_deadline=start_deadline,
    )


def coroutine(
    id: str,  # noqa: A002 - OTP's word for it
    function: Callable[..., Awaitable[object]],
    *,
    args: Sequence[Any] = (),
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = 5.0,
    significant: bool = False,
    backoff: Backoff | None = None,
    start_deadline: float = 60.0,
) -> ChildSpec:
    """Make a child of an async function in the supervisor's own process.

    It counts as up at once, unless it takes a keyword argument ``task_status``: then it is up when it has
    called ``task_status.started()``, as in anyio. If it takes a keyword argument ``predecessor``, it is
    given the [`Exit`][rayvisor.Exit] of the incarnation before it; None at the first start.

    It is asked to end as anyio cancels a scope: what it shields goes on. When its shutdown time is over,
    and for ``Shutdown.BRUTAL_KILL`` at once, its task itself is cancelled, which no shield holds up.

    Parameters
    ----------
    id
        Name of the child.
    function
        Called with ``args`` at every start.
    args
        What it is called with.
    restart, shutdown, significant, backoff, start_deadline
        As in [`ChildSpec`][rayvisor.ChildSpec].
    """
    if not callable(function):
        raise SpecError("function", function, "must be an async function")
    return ChildSpec(
        id=id,
        start=CoroutineStart(function=function, args=tuple(args)),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        backoff=backoff,
        start_deadline=start_deadline,
    )


def subtree(
    id: str,  # noqa: A002 - OTP's word for it
    spec: SupervisorSpec | Callable[..., SupervisorSpec | Awaitable[SupervisorSpec]],
    *,
    args: Sequence[Any] = (),
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = Shutdown.INFINITY,
    significant: bool = False,
    backoff: Backoff | None = None,
    start_deadline: float = 60.0,
) -> ChildSpec:
    """Make a child of a supervisor with children of its own.

    Parameters
    ----------
    id
        Name of the child.
    spec
        The supervisor's spec; or a function, also an async one, that makes it anew at each of its starts
        (OTP: ``init``). If the function takes a keyword argument ``predecessor``, it is given the
        [`Exit`][rayvisor.Exit] of the supervisor before; None at the first start. It runs in the
        supervisor's event loop, so it must not block.
    args
        What the function is called with.
    restart, shutdown, significant, backoff
        As in [`ChildSpec`][rayvisor.ChildSpec]. A finite shutdown kills what is left when it is over.
    start_deadline
        Seconds the function may take. The children it names have deadlines of their own.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> def room(name: str) -> rv.SupervisorSpec:
    ...     return rv.SupervisorSpec(children=[rv.coroutine("talk", talk, args=[name])])
    >>> rooms = rv.SupervisorSpec(
    ...     strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE, children=[rv.subtree("room", room)]
    ... )
    >>> await sup.start_child(rv.Instance("lobby", args=("lobby",)), under="rooms")
    """
    if isinstance(spec, SupervisorSpec):
        if args:
            raise SpecError("args", args, "are for a function; a SupervisorSpec is complete as it is")
    elif not callable(spec):
        raise SpecError("spec", spec, "must be a SupervisorSpec, or a function that makes one")
    return ChildSpec(
        id=id,
        start=spec if isinstance(spec, SupervisorSpec) else SupervisorStart(function=spec, args=tuple(args)),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        backoff=backoff,
        start_deadline=start_deadline,
    )
