"""Children that are engines: pools of them, and groups of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack, cast

from rayvisor._redaction import masked_repr
from rayvisor._validation import one_of, seconds, whole
from rayvisor.errors import SpecError
from rayvisor.specs.arguments import (
    EngineGroupArguments,
    EnginePoolArguments,
    actor_options,
    complete,
    stall_limits,
)
from rayvisor.specs.backoff import Backoff
from rayvisor.specs.limits import StallLimits
from rayvisor.specs.placement import ActorOptions
from rayvisor.specs.tree import ChildSpec, Shutdown, Strategy, SupervisorSpec
from rayvisor.status import ChildKind
from rayvisor.strategies import RestartStrategy

__all__ = ["SETTLED", "WEIGHTS_CHANGED", "EnginePoolSpec", "EngineStart", "engine_group", "engine_pool"]

WEIGHTS_CHANGED = ("splice", "restart", "fail")
"""Ways to handle a request whose weights change under it."""
SETTLED = ("size", "standby", "strategy", "max_concurrent_starts")
"""Arguments of a pool that a group sets itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStart:
    """Start spec of a vLLM engine (or a simulated one) in a host actor."""

    engine: str
    arguments: Mapping[str, Any]
    options: ActorOptions = field(default_factory=ActorOptions)
    limits: StallLimits = field(default_factory=StallLimits)
    kind: str = ChildKind.ENGINE

    def __repr__(self) -> str:
        return masked_repr(self)

    def gpu_arguments(self) -> Mapping[str, Any] | None:
        """Return the arguments that say how many GPUs it takes; None if it takes none."""
        return self.arguments if self.engine == "vllm" else None

    def arguments_after(self, url: str) -> Mapping[str, Any]:  # noqa: ARG002 - servers use it
        """Return its arguments if the previous incarnation was at ``url``."""
        return self.arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePoolSpec(SupervisorSpec):
    """The supervisor of a pool's engines, and the limits of its requests."""

    queue_limit: int = 1000
    request_timeout: float = 600.0
    max_attempts: int = 5
    on_weights_changed: str = "splice"

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is created twice, and super() would refer to the first one.
        SupervisorSpec.__post_init__(self)
        whole("queue_limit", self.queue_limit, "requests")
        whole("max_attempts", self.max_attempts, "attempts")
        seconds("request_timeout", self.request_timeout, exclusive=True)
        one_of("on_weights_changed", self.on_weights_changed, WEIGHTS_CHANGED)


def engine_pool(
    id: str,
    *,
    engine_args: Mapping[str, Any],
    size: int = 1,
    standby: int = 0,
    engine: str = "vllm",
    strategy: Strategy | RestartStrategy | str = Strategy.ONE_FOR_ONE,
    shutdown: Shutdown | float = 20.0,
    start_timeout: float = 300.0,
    **arguments: Unpack[EnginePoolArguments],
) -> ChildSpec:
    """Make a pool of engines behind one queue of requests, which outlives every one of them.

    Parameters
    ----------
    id
        Name of the pool; ``supervisor[id]`` is its [`EnginePool`][rayvisor.EnginePool].
    engine_args
        Fields of vLLM's ``AsyncEngineArgs``: ``{"model": ..., "max_model_len": ...}``.
    size
        How many engines serve.
    standby
        How many more are kept up and warm as spares: one takes over immediately when an engine ends, and that
        one comes back as the new spare. Spares are placed on other nodes than the rest if those have room,
        unless ``scheduling`` or ``placement`` says something else.
    engine
        ``"vllm"``, or ``"sim"`` for a simulated engine.
    strategy
        Which of its engines are restarted together.
    shutdown
        Seconds an engine may take to end before it is killed.
    start_timeout
        Seconds that an engine's start may go without progress: another phase, another line of its log, or
        processor time of its processes. So a compilation of an hour is no fault, and a start that hangs is
        found in this time.
    arguments
        Its supervisor, gate and requests ([`PoolArguments`][rayvisor.specs.PoolArguments] and
        [`EnginePoolArguments`][rayvisor.specs.EnginePoolArguments]), how its engines are watched
        ([`HealthArguments`][rayvisor.specs.HealthArguments]), and what the host of each asks of Ray
        ([`PlacementArguments`][rayvisor.specs.PlacementArguments]).

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
    given = complete("engine_pool", EnginePoolArguments, arguments)
    whole("size", size, "engines")
    whole("standby", standby, "spares", least=0)
    one_of("engine", engine, ("vllm", "sim"))
    if not isinstance(engine_args, Mapping):
        raise SpecError("engine_args", engine_args, "must be a mapping of engine arguments by name")
    options = actor_options(given)
    limits = stall_limits(given)
    serving, spares = _names(1, size), _names(size + 1, size + standby)
    placed = given["scheduling"] is not None or given["placement"] is not None
    children = [
        ChildSpec(
            id=str(number),
            start=EngineStart(
                engine=engine,
                arguments=dict(engine_args),
                options=replace(options, apart_from=() if placed else spares if number <= size else serving),
                limits=limits,
            ),
            shutdown=shutdown,
            backoff=Backoff() if given["backoff"] is None else given["backoff"],
            start_timeout=start_timeout,
            crash_loop_limit=given["crash_loop_limit"],
            retry_first_start=True,
            standby=number > size,
            gate=given["gate"],
            recoveries=given["recoveries"],
            recovery_timeout=given["recovery_timeout"],
            instructed_by=given["instructed_by"],
        )
        for number in range(1, size + standby + 1)
    ]
    return ChildSpec(
        id=id,
        start=EnginePoolSpec(
            strategy=strategy,
            intensity=given["intensity"],
            period=given["period"],
            children=children,
            max_concurrent_starts=given["max_concurrent_starts"],
            queue_limit=given["queue_limit"],
            request_timeout=given["request_timeout"],
            max_attempts=given["max_attempts"],
            on_weights_changed=given["on_weights_changed"],
        ),
        restart=given["restart"],
    )


def engine_group(
    id: str,
    *,
    engine_args: Mapping[str, Any],
    ranks: int,
    rank_args: Callable[[int], Mapping[str, Any]] | Sequence[Mapping[str, Any]] = (),
    engine: str = "vllm",
    shutdown: Shutdown | float = 20.0,
    start_timeout: float = 300.0,
    **arguments: Unpack[EngineGroupArguments],
) -> ChildSpec:
    """Make a group of engines that live and recover together: the ranks of one data-parallel deployment.

    It is a pool, ``supervisor[id]`` is an [`EnginePool`][rayvisor.EnginePool], and each rank is one of its
    engines. But what happens to one rank happens to all. All are started at the same time. When one reports a
    fault by vLLM's fault tolerance, all are paused and instructed to retry; all serve again once every one of
    them has reported that it is healthy, within ``recovery_timeout`` and before the engines' own timeouts. If
    one does not, or dies, or the ``recoveries`` of the period are used up, the whole group is restarted. No
    request is lost by either.

    Parameters
    ----------
    id
        Name of the group.
    engine_args
        Arguments that the ranks have in common, as in [`engine_pool`][rayvisor.engine_pool].
    ranks
        How many engines.
    rank_args
        Arguments of each rank, which take precedence over ``engine_args``: a function of its number (0, 1,
        ...), or one mapping for each.
    engine, shutdown, start_timeout
        As in [`engine_pool`][rayvisor.engine_pool].
    arguments
        As in [`engine_pool`][rayvisor.engine_pool], but for ``size``, ``standby``, ``strategy`` and
        ``max_concurrent_starts``, which a group sets itself.

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
        if name in arguments:
            value = cast("Mapping[str, Any]", arguments)[name]
            raise SpecError(name, value, "is not for a group: all its ranks start, serve and end together")
    given = complete("engine_group", EngineGroupArguments, arguments)
    each = [rank_args(rank) for rank in range(ranks)] if callable(rank_args) else list(rank_args)
    if each and (len(each) != ranks or not all(isinstance(own, Mapping) for own in each)):
        raise SpecError("rank_args", rank_args, f"must be a function, or {ranks} mappings, one for each rank")
    pool = engine_pool(
        id,
        engine_args=engine_args,
        size=ranks,
        strategy=Strategy.ONE_FOR_ALL,
        engine=engine,
        shutdown=shutdown,
        start_timeout=start_timeout,
        max_concurrent_starts=ranks,  # they wait for each other during their starts
        **given,
    )
    spec = cast("EnginePoolSpec", pool.start)
    children = [
        replace(child, start=replace(cast("EngineStart", child.start), arguments={**engine_args, **own}))
        for child, own in zip(spec.children, each or [{}] * ranks, strict=True)
    ]
    return replace(pool, start=replace(spec, children=children, recover_as_group=True))


def _names(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, last + 1))
