"""Children in the supervisor's own process: coroutines, and supervisors with children of their own.

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
from typing import Any, Unpack

from rayvisor._redaction import masked_repr
from rayvisor.errors import SpecError
from rayvisor.specs.arguments import RestartArguments, complete
from rayvisor.specs.tree import ChildSpec, Shutdown, SupervisorSpec
from rayvisor.status import ChildKind

__all__ = ["CoroutineStart", "IgnoreStart", "SupervisorStart", "coroutine", "subtree"]


class IgnoreStart(Exception):  # noqa: N818 - an instruction to the supervisor, not an error
    """Raised by a start that chooses not to run (OTP: ``ignore``).

    Raise it in a coroutine before it calls ``task_status.started()``, in the ``__init__`` of an actor, or in
    the function of a [`subtree`][rayvisor.subtree]. The child is then down, and its supervisor continues; its
    spec is kept (unless the child is temporary), and ``restart_child`` tries the start again.

    Examples
    --------
    >>> async def archive(*, task_status: anyio.abc.TaskStatus[None]) -> None:
    ...     if not ARCHIVE.exists():
    ...         raise rv.IgnoreStart("nothing to archive")
    ...     task_status.started()
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class CoroutineStart:
    """Start spec of an async function in the supervisor's own process."""

    function: Callable[..., Awaitable[object]]
    args: tuple[Any, ...] = ()
    kind: str = ChildKind.COROUTINE

    def __repr__(self) -> str:
        return masked_repr(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStart:
    """Start spec of a supervisor whose own spec a function makes at each start (OTP: ``init``)."""

    function: Callable[..., SupervisorSpec | Awaitable[SupervisorSpec]]
    args: tuple[Any, ...] = ()
    kind: str = ChildKind.SUPERVISOR

    def __repr__(self) -> str:
        return masked_repr(self)


def coroutine(
    id: str,
    function: Callable[..., Awaitable[object]],
    *,
    args: Sequence[Any] = (),
    shutdown: Shutdown | float = 5.0,
    start_timeout: float = 60.0,
    **arguments: Unpack[RestartArguments],
) -> ChildSpec:
    """Make a child of an async function in the supervisor's own process.

    It counts as up immediately, unless it takes a keyword argument ``task_status``: then it is up when it has
    called ``task_status.started()``, as in anyio. If it takes a keyword argument ``predecessor``, that is the
    [`Exit`][rayvisor.Exit] of the previous incarnation; None at the first start.

    It is asked to end as anyio cancels a scope: shielded code continues. When its shutdown time is over, and
    for ``Shutdown.BRUTAL_KILL`` immediately, its task itself is cancelled, which no shield delays.

    Parameters
    ----------
    id
        Name of the child.
    function
        Called with ``args`` at every start.
    args
        Its arguments.
    shutdown, start_timeout
        As in [`ChildSpec`][rayvisor.ChildSpec].
    arguments
        When it is restarted; see [`RestartArguments`][rayvisor.specs.RestartArguments].

    Raises
    ------
    SpecError
        When it is not a function, or a value cannot work.

    Examples
    --------
    >>> async def listen(port: int, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    ...     async with await anyio.create_tcp_listener(local_port=port) as listener:
    ...         task_status.started()  # up from here on
    ...         await listener.serve(answer)
    >>> child = coroutine("listener", listen, args=[8080], restart=Restart.TRANSIENT)
    """
    given = complete("coroutine", RestartArguments, arguments)
    if not callable(function):
        raise SpecError("function", function, "must be an async function")
    return ChildSpec(
        id=id,
        start=CoroutineStart(function=function, args=tuple(args)),
        shutdown=shutdown,
        start_timeout=start_timeout,
        **given,
    )


def subtree(
    id: str,
    spec: SupervisorSpec | Callable[..., SupervisorSpec | Awaitable[SupervisorSpec]],
    *,
    args: Sequence[Any] = (),
    shutdown: Shutdown | float = Shutdown.INFINITY,
    start_timeout: float = 60.0,
    **arguments: Unpack[RestartArguments],
) -> ChildSpec:
    """Make a child of a supervisor with children of its own.

    Parameters
    ----------
    id
        Name of the child.
    spec
        The supervisor's spec; or a function, also an async one, that makes it at each of its starts (OTP:
        ``init``). If the function takes a keyword argument ``predecessor``, that is the
        [`Exit`][rayvisor.Exit] of the previous supervisor; None at the first start. It runs in the
        supervisor's event loop, so it must not block.
    args
        Arguments of the function.
    shutdown
        As in [`ChildSpec`][rayvisor.ChildSpec]. When a finite shutdown is over, the remaining children are
        killed.
    start_timeout
        Seconds the function may take. The children it names have timeouts of their own.
    arguments
        When the supervisor is restarted; see [`RestartArguments`][rayvisor.specs.RestartArguments].

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
    given = complete("subtree", RestartArguments, arguments)
    if isinstance(spec, SupervisorSpec):
        if args:
            raise SpecError("args", args, "are for a function; a SupervisorSpec is complete as it is")
    elif not callable(spec):
        raise SpecError("spec", spec, "must be a SupervisorSpec, or a function that makes one")
    return ChildSpec(
        id=id,
        start=spec if isinstance(spec, SupervisorSpec) else SupervisorStart(function=spec, args=tuple(args)),
        shutdown=shutdown,
        start_timeout=start_timeout,
        **given,
    )
