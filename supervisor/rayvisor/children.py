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
from rayvisor._engine.stall import StallLimits
from rayvisor.errors import SpecError
from rayvisor.gates import Gate
from rayvisor.specs import Backoff, ChildSpec, Restart, Shutdown, Strategy, SupervisorSpec
from rayvisor.strategies import RestartStrategy

__all__ = [
    "ActorStart",
    "CoroutineStart",
    "EnginePoolSpec",
    "EngineStart",
    "IgnoreStart",
    "SupervisorStart",
    "actor",
    "coroutine",
    "engine_pool",
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
class EngineStart:
    """A vLLM engine (or a simulated one) in a host actor."""

    engine: str
    arguments: Mapping[str, Any]
    options: ActorOptions = field(default_factory=ActorOptions)
    limits: StallLimits = field(default_factory=StallLimits)
    kind: str = "engine"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePoolSpec(SupervisorSpec):
    """The supervisor of a pool's engines, and what its front of requests keeps to."""

    queue_limit: int = 1000
    deadline: float = 600.0
    attempts: int = 5

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is made twice, and the first one's cell would be meant.
        SupervisorSpec.__post_init__(self)
        _count("queue_limit", self.queue_limit, "requests")
        _count("attempts", self.attempts, "attempts")
        _seconds("deadline", self.deadline)


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


def engine_pool(  # noqa: PLR0913 - as above
    id: str,  # noqa: A002 - OTP's word for it
    *,
    engine_args: Mapping[str, Any],
    size: int = 1,
    standby: int = 0,
    engine: str = "vllm",
    strategy: Strategy | RestartStrategy | str = Strategy.ONE_FOR_ONE,
    intensity: int = 5,
    period: float = 3600.0,
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = 20.0,
    backoff: Backoff | None = None,
    start_deadline: float = 300.0,
    start_longest: float | None = None,
    start_limit: int = 4,
    stall_after: float = 30.0,
    step_limit: float | None = None,
    probe_interval: float = 2.0,
    probes: tuple[int, int] = (3, 5),
    no_progress: int | None = 3,
    queue_limit: int = 1000,
    deadline: float = 600.0,
    attempts: int = 5,
    gate: Callable[[Gate], Awaitable[object]] | None = None,
    recoveries: int = 3,
    recovery_deadline: float = 10.0,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    scheduling: str | NodePin | None = None,
    placement: PlacementOptions | None = None,
) -> ChildSpec:
    """Make a pool of engines behind one front of requests, which outlives every one of them.

    Parameters
    ----------
    id
        Name of the pool; ``supervisor[id]`` is its [`EnginePool`][rayvisor.EnginePool].
    engine_args
        Fields of vLLM's ``AsyncEngineArgs``: ``{"model": ..., "max_model_len": ...}``.
    size
        How many engines serve.
    standby
        How many more are kept up and warm as spares: one takes over at once when an engine ends, and that
        one comes back as the new spare.
    engine
        ``"vllm"``, or ``"sim"`` for a simulated engine.
    strategy
        Which of its engines are restarted together.
    intensity, period
        How many restarts of its engines are tolerated within how many seconds.
    restart
        What the pool's own supervisor does when the pool gives up.
    shutdown
        Seconds an engine may take to end before it is killed.
    backoff
        Default: the first restart at once, then 1 s to 30 s with full jitter.
    start_deadline
        Seconds that an engine's start may go without progress: another phase or another line of its log,
        or processor time of its processes. So a compilation of an hour is no fault, and a start that hangs
        is found in this time.
    start_longest
        Seconds a start may take in all. Default: four times ``start_deadline``.
    start_limit
        How many engines start side by side.
    stall_after
        Seconds without a token, while requests wait and the engine's processes do nothing, after which it
        has stalled: it is ended and restarted. A host that is silent for so long has stalled, too.
    step_limit
        The same while its processes compute, as in a long prefill: only then is it ended. Default: 300, or
        ``stall_after`` if that is more.
    probe_interval
        Seconds between two looks at an engine; a stall is found at the latest so long after its limit.
    probes
        ``(k, n)``: an engine that ``k`` of the last ``n`` looks found doing nothing though requests wait is
        SUSPECT, and gets no new ones until it brings a token. ``stall_after`` must leave time for that:
        at least ``k * probe_interval``.
    no_progress
        That many incarnations in a row that die before delivering a token end the pool.
    queue_limit
        How many requests may wait.
    deadline
        Seconds a request may take, unless it says otherwise.
    attempts
        On how many incarnations a request is tried, unless it says otherwise.
    gate
        An async function that is called with a [`Gate`][rayvisor.Gate] whenever an engine has come up, spares
        too, or is declared stale (``supervisor.stale("llm")``): the engine serves once it has succeeded.
        Three tries, each at most ``start_deadline`` long; then the engine is restarted.
    recoveries
        How often within ``period`` an engine that reports a fault by vLLM's fault tolerance may recover in
        place before it is restarted instead.
    recovery_deadline
        Seconds that may take.
    num_cpus, num_gpus, resources, memory, runtime_env, scheduling, placement
        What each engine's host asks of Ray. ``num_gpus`` is by default tensor parallel x pipeline
        parallel size, and none on the CPU.

    Raises
    ------
    SpecError
        When a value cannot work.
    """
    _count("size", size, "engines")
    _count("standby", standby, "spares", least=0)
    if engine not in {"vllm", "sim"}:
        raise SpecError("engine", engine, "must be 'vllm' or 'sim'")
    if not isinstance(engine_args, Mapping):
        raise SpecError("engine_args", engine_args, "must be a mapping of engine arguments by name")
    options = ActorOptions(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=dict(resources or {}),
        memory=memory,
        runtime_env=dict(runtime_env or {}),
        scheduling=scheduling,
        placement=placement,
    )
    limits = StallLimits(
        stall_after=stall_after,
        step_limit=max(300.0, stall_after) if step_limit is None else step_limit,
        probe_interval=probe_interval,
        probes=probes,
        start_longest=start_longest,
    )
    children = [
        ChildSpec(
            id=str(number),
            start=EngineStart(engine=engine, arguments=dict(engine_args), options=options, limits=limits),
            shutdown=shutdown,
            backoff=Backoff() if backoff is None else backoff,
            start_deadline=start_deadline,
            no_progress=no_progress,
            retry_first_start=True,
            standby=number > size,
            gate=gate,
            recoveries=recoveries,
            recovery_deadline=recovery_deadline,
        )
        for number in range(1, size + standby + 1)
    ]
    return ChildSpec(
        id=id,
        start=EnginePoolSpec(
            strategy=strategy,
            intensity=intensity,
            period=period,
            children=children,
            start_limit=start_limit,
            queue_limit=queue_limit,
            deadline=deadline,
            attempts=attempts,
        ),
        restart=restart,
    )


def _count(name: str, value: object, unit: str, *, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(name, value, f"must be a whole number of {unit}, {least} or more")


def _seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SpecError(name, value, "must be a number of seconds, more than 0")
