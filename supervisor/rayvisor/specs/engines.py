"""Children that are engines: pools of them, and groups of ranks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from rayvisor._validation import one_of, seconds, whole
from rayvisor.errors import SpecError
from rayvisor.specs.backoff import Backoff
from rayvisor.specs.gate import Gate
from rayvisor.specs.limits import StallLimits
from rayvisor.specs.placement import ActorOptions, NodePin, PlacementOptions
from rayvisor.specs.tree import ChildSpec, Restart, Shutdown, Strategy, SupervisorSpec
from rayvisor.strategies import RestartStrategy

__all__ = ["SETTLED", "WEIGHTS_CHANGED", "EnginePoolSpec", "EngineStart", "engine_group", "engine_pool"]

WEIGHTS_CHANGED = ("splice", "restart", "fail")
"""What can be done with a request whose weights change under it."""
SETTLED = ("size", "standby", "strategy", "max_concurrent_starts")
"""What a group settles itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStart:
    """A vLLM engine (or a simulated one) in a host actor."""

    engine: str
    arguments: Mapping[str, Any]
    options: ActorOptions = field(default_factory=ActorOptions)
    limits: StallLimits = field(default_factory=StallLimits)
    kind: str = "engine"

    def gpu_arguments(self) -> Mapping[str, Any] | None:
        """What says how many GPUs it takes; None for one that takes none."""
        return self.arguments if self.engine == "vllm" else None

    def arguments_after(self, url: str) -> Mapping[str, Any]:  # noqa: ARG002 - for those that have one
        """Its arguments, where the incarnation before was at ``url``."""
        return self.arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePoolSpec(SupervisorSpec):
    """The supervisor of a pool's engines, and what its front of requests keeps to."""

    queue_limit: int = 1000
    request_timeout: float = 600.0
    max_attempts: int = 5
    on_weights_changed: str = "splice"

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is made twice, and the first one's cell would be meant.
        SupervisorSpec.__post_init__(self)
        whole("queue_limit", self.queue_limit, "requests")
        whole("max_attempts", self.max_attempts, "attempts")
        seconds("request_timeout", self.request_timeout, exclusive=True)
        one_of("on_weights_changed", self.on_weights_changed, WEIGHTS_CHANGED)


def engine_pool(  # noqa: PLR0913 - keywords, each of its own meaning
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
    start_timeout: float = 300.0,
    total_start_timeout: float | None = None,
    max_concurrent_starts: int = 4,
    stall_after: float = 30.0,
    step_limit: float | None = None,
    probe_interval: float = 2.0,
    failure_threshold: tuple[int, int] = (3, 5),
    crash_loop_limit: int | None = 3,
    queue_limit: int = 1000,
    request_timeout: float = 600.0,
    max_attempts: int = 5,
    gate: Callable[[Gate], Awaitable[object]] | None = None,
    on_weights_changed: Literal["splice", "restart", "fail"] = "splice",
    recoveries: int = 3,
    recovery_timeout: float = 10.0,
    instructed_by: Literal["supervisor", "operator"] = "supervisor",
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
        one comes back as the new spare. Spares are placed on other nodes than the rest where those have
        room, unless ``scheduling`` or ``placement`` says something else.
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
    start_timeout
        Seconds that an engine's start may go without progress: another phase or another line of its log,
        or processor time of its processes. So a compilation of an hour is no fault, and a start that hangs
        is found in this time.
    total_start_timeout
        Seconds a start may take in all. Default: four times ``start_timeout``.
    max_concurrent_starts
        How many engines start side by side.
    stall_after
        Seconds without a token, while requests wait and the engine's processes do nothing, after which it
        has stalled: it is ended and restarted. A host that is silent for so long has stalled, too.
    step_limit
        The same while its processes compute, as in a long prefill: only then is it ended. Default: 300, or
        ``stall_after`` if that is more.
    probe_interval
        Seconds between two looks at an engine; a stall is found at the latest so long after its limit.
    failure_threshold
        ``(k, n)``: an engine that ``k`` of the last ``n`` looks found doing nothing though requests wait is
        SUSPECT, and gets no new ones until it brings a token. ``stall_after`` must leave time for that:
        at least ``k * probe_interval``.
    crash_loop_limit
        That many incarnations in a row that die before delivering a token end the pool.
    queue_limit
        How many requests may wait.
    request_timeout
        Seconds a request may take, unless it says otherwise.
    max_attempts
        On how many incarnations a request is tried, unless it says otherwise.
    gate
        An async function that is called with a [`Gate`][rayvisor.Gate] whenever an engine has come up, spares
        too, or is declared stale (``supervisor.mark_stale("llm")``): the engine serves once it has succeeded.
        Three tries, each at most ``start_timeout`` long; then the engine is restarted. If it returns a
        whole number, that is the version of the engine's weights, which each chunk carries from then on.
    on_weights_changed
        What becomes of a request when the version moves under it, unless it says otherwise: ``"splice"``
        goes on behind the delivered tokens, ``"restart"`` begins it anew (its next chunk says
        ``restarted``), ``"fail"`` fails it with ``WeightsChangedError`` if anything had been delivered.
        It leaves an engine as soon as that is declared stale, so that each token is of one known version.
    recoveries
        How often within ``period`` an engine that reports a fault by vLLM's fault tolerance may recover in
        place before it is restarted instead.
    recovery_timeout
        Seconds that may take.
    instructed_by
        Who gives the instruction to recover. ``"supervisor"``: at once, to every rank. ``"operator"``:
        an outside orchestrator, by ``supervisor.set_recovery_instruction`` or the control socket; until then
        the engines are PAUSED.FAULTED. What has not recovered within ``recovery_timeout`` is restarted.
    num_cpus, num_gpus, resources, memory, runtime_env, scheduling, placement
        What each engine's host asks of Ray. ``num_gpus`` is by default tensor parallel x pipeline
        parallel size, and none on the CPU.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> pool = engine_pool("llm", engine_args={"model": "/models/small"}, size=2, standby=1)
    >>> [(child.id, child.standby) for child in pool.start.children]
    [('1', False), ('2', False), ('3', True)]
    """
    whole("size", size, "engines")
    whole("standby", standby, "spares", least=0)
    one_of("engine", engine, ("vllm", "sim"))
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
        failure_threshold=failure_threshold,
        total_start_timeout=total_start_timeout,
    )
    serving, spares = _names(1, size), _names(size + 1, size + standby)
    free = scheduling is None and placement is None  # of a wish of the user's own
    children = [
        ChildSpec(
            id=str(number),
            start=EngineStart(
                engine=engine,
                arguments=dict(engine_args),
                options=replace(options, apart_from=(spares if number <= size else serving) if free else ()),
                limits=limits,
            ),
            shutdown=shutdown,
            backoff=Backoff() if backoff is None else backoff,
            start_timeout=start_timeout,
            crash_loop_limit=crash_loop_limit,
            retry_first_start=True,
            standby=number > size,
            gate=gate,
            recoveries=recoveries,
            recovery_timeout=recovery_timeout,
            instructed_by=instructed_by,
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
            max_concurrent_starts=max_concurrent_starts,
            queue_limit=queue_limit,
            request_timeout=request_timeout,
            max_attempts=max_attempts,
            on_weights_changed=on_weights_changed,
        ),
        restart=restart,
    )


def engine_group(
    id: str,  # noqa: A002 - OTP's word for it
    *,
    engine_args: Mapping[str, Any],
    ranks: int,
    rank_args: Callable[[int], Mapping[str, Any]] | Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> ChildSpec:
    """Make a group of engines that live and recover together: the ranks of one data-parallel deployment.

    It is a pool, ``supervisor[id]`` is an [`EnginePool`][rayvisor.EnginePool], and each rank is an engine of
    it. But what happens to one rank happens to all. All come up side by side. When one reports a fault by
    vLLM's fault tolerance, all are paused and told to retry; all serve again once every one of them has said
    that it is well, within ``recovery_timeout`` and before the engines lose their own patience. If one does
    not, or dies, or the ``recoveries`` of the period are used up, the whole group is restarted. No request is
    lost by either.

    Parameters
    ----------
    id
        Name of the group.
    engine_args
        What the ranks have in common, as in [`engine_pool`][rayvisor.engine_pool].
    ranks
        How many engines.
    rank_args
        What each rank has of its own, which wins over ``engine_args``: a function of its number (0, 1, ...),
        or one mapping for each.
    options
        As in [`engine_pool`][rayvisor.engine_pool], but for ``size``, ``standby``, ``strategy`` and
        ``max_concurrent_starts``, which a group settles itself.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> group = engine_group(
    ...     "llm",
    ...     engine_args={
    ...         "model": "/models/moe", "enable_expert_parallel": True, "data_parallel_size": 2,
    ...         "data_parallel_address": "10.0.0.1", "data_parallel_rpc_port": 29550,
    ...         "enable_fault_tolerance": True, "all2all_backend": "deepep_low_latency",
    ...     },
    ...     ranks=2,
    ...     rank_args=lambda rank: {"data_parallel_rank": rank},
    ... )
    >>> [child.start.arguments["data_parallel_rank"] for child in group.start.children]
    [0, 1]
    """
    whole("ranks", ranks, "ranks")
    for name in SETTLED:
        if name in options:
            raise SpecError(
                name, options[name], "is not for a group: all its ranks start, serve and end together"
            )
    each = [rank_args(rank) for rank in range(ranks)] if callable(rank_args) else list(rank_args)
    if each and (len(each) != ranks or not all(isinstance(own, Mapping) for own in each)):
        raise SpecError("rank_args", rank_args, f"must be a function, or {ranks} mappings, one for each rank")
    pool = engine_pool(
        id,
        engine_args=engine_args,
        size=ranks,
        strategy=Strategy.ONE_FOR_ALL,
        max_concurrent_starts=ranks,  # they wait for each other while they come up
        **options,
    )
    spec = cast("EnginePoolSpec", pool.start)
    children = [
        replace(child, start=replace(cast("EngineStart", child.start), arguments={**engine_args, **own}))
        for child, own in zip(spec.children, each or [{}] * ranks, strict=True)
    ]
    return replace(pool, start=replace(spec, children=children, recover_as_group=True))


def _names(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, last + 1))
