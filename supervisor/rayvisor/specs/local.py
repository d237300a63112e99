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

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rayvisor.errors import SpecError
from rayvisor.specs.backoff import Backoff
from rayvisor.specs.tree import ChildSpec, Restart, Shutdown, SupervisorSpec
from rayvisor.status import ChildKind

__all__ = ["CoroutineStart", "IgnoreStart", "SupervisorStart", "coroutine", "subtree"]


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
class CoroutineStart:
    """An async function in the supervisor's own process."""

    function: Callable[..., Awaitable[object]]
    args: tuple[Any, ...] = ()
    kind: str = ChildKind.COROUTINE


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStart:
    """A supervisor whose spec a function makes anew at each of its starts (OTP: ``init``)."""

    function: Callable[..., SupervisorSpec | Awaitable[SupervisorSpec]]
    args: tuple[Any, ...] = ()
    kind: str = ChildKind.SUPERVISOR


def coroutine(
    id: str,  # noqa: A002 - OTP's word for it
    function: Callable[..., Awaitable[object]],
    *,
    args: Sequence[Any] = (),
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = 5.0,
    significant: bool = False,
    backoff: Backoff | None = None,
    start_timeout: float = 60.0,
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
    restart, shutdown, significant, backoff, start_timeout
        As in [`ChildSpec`][rayvisor.ChildSpec].

    Raises
    ------
    SpecError
        When it is no function, or a value cannot work.

    Examples
    --------
    >>> async def listen(port: int, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    ...     async with await anyio.create_tcp_listener(local_port=port) as listener:
    ...         task_status.started()  # up from here on
    ...         await listener.serve(answer)
    >>> child = coroutine("listener", listen, args=[8080], restart=Restart.TRANSIENT)
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
        start_timeout=start_timeout,
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
    start_timeout: float = 60.0,
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
    start_timeout
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
        start_timeout=start_timeout,
    )
