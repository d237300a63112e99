"""Keyword arguments that several of the functions which make children share, described once.

Each function names the group it takes (PEP 692), so an editor completes them and a type checker knows them. A
group of groups has all of their arguments.

>>> [argument.name for argument in arguments_of(RestartArguments)]
['restart', 'significant', 'backoff']
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, Literal, NamedTuple, TypedDict, get_args, get_type_hints

from rayvisor.specs.backoff import Backoff
from rayvisor.specs.gate import Gate
from rayvisor.specs.hooks import ActorHook, ActorHooks
from rayvisor.specs.limits import StallLimits
from rayvisor.specs.placement import ActorOptions, NodePin, PlacementOptions
from rayvisor.specs.tree import Restart

__all__ = [
    "ActorArguments",
    "AdoptArguments",
    "Argument",
    "EngineGroupArguments",
    "EnginePoolArguments",
    "HealthArguments",
    "HookArguments",
    "PlacementArguments",
    "PoolArguments",
    "RestartArguments",
    "ServerArguments",
    "actor_hooks",
    "actor_options",
    "arguments_of",
    "complete",
    "stall_limits",
]


class RestartArguments(TypedDict, total=False):
    """When a child is restarted, and what its end means for its supervisor.

    Parameters
    ----------
    restart
        When the child is restarted; ``Restart.PERMANENT`` by default.
    significant
        Whether its end counts for the supervisor's ``auto_shutdown``; False by default.
    backoff
        Delays before restarts; None, the default, is no delay, as in OTP.
    """

    restart: Restart
    significant: bool
    backoff: Backoff | None


class PlacementArguments(TypedDict, total=False):
    """Resources of a child, and where it runs.

    Parameters
    ----------
    num_cpus, num_gpus, resources, memory, runtime_env
        Passed through to Ray unchanged; None, the default, keeps Ray's default. For engines and servers
        ``num_gpus`` is by default the product of their parallel sizes, and 0 on the CPU.
    scheduling
        ``"DEFAULT"``, ``"SPREAD"``, or a [`NodePin`][rayvisor.NodePin] to one node; not together with
        ``placement``.
    placement
        A [placement group][rayvisor.PlacementOptions] of the child's own: made once, reused by all its
        incarnations, removed with it.
    """

    num_cpus: float | None
    num_gpus: float | None
    resources: Mapping[str, float] | None
    memory: int | None
    runtime_env: Mapping[str, Any] | None
    scheduling: str | NodePin | None
    placement: PlacementOptions | None


class HookArguments(TypedDict, total=False):
    """Methods and functions of the user's that are called for an actor, and its probes.

    A hook is the name of a method without arguments, or a function that takes Ray's handle of the actor:
    async, or one that returns an object reference, or one that blocks, which runs in a thread. Methods run
    where the actor's other methods run, between them, in its main thread.

    Parameters
    ----------
    probe
        Proves that the actor works, by returning anything but False. The actor serves only once the first
        probe was answered. None, the default: no probes.
    pause, resume
        Called when `Supervisor.pause` and `Supervisor.resume` (or an operator) pause and resume the actor;
        ``pause`` is also called when it comes up again while it is paused. They have 60 seconds and three
        tries.
    drain
        Called before the actor is asked to end, within its ``shutdown`` time.
    probe_interval
        Seconds between two probes; 2 by default.
    probe_timeout
        Seconds after which a probe counts as missed; 5 by default. The probe is awaited nevertheless: there
        is never more than one.
    failure_threshold
        ``(k, n)``: with ``k`` of the last ``n`` probes missed the actor is SUSPECT, and gets no new work;
        ``(3, 5)`` by default.
    stall_after
        Seconds without an answered probe after which the actor is ended and restarted (FATAL); 30 by default.
        Choose it longer than the longest call of the actor: a probe waits its turn.
    """

    probe: ActorHook | None
    pause: ActorHook | None
    resume: ActorHook | None
    drain: ActorHook | None
    probe_interval: float
    probe_timeout: float
    failure_threshold: tuple[int, int]
    stall_after: float


class HealthArguments(TypedDict, total=False):
    """How an engine or a server is watched, and when it counts as failed.

    Parameters
    ----------
    stall_after
        Seconds without a token, while requests wait and the processes do nothing, after which the engine has
        stalled: it is ended and restarted. A host that is silent for so long has stalled, too. A server has
        also stalled when its front does not answer for so long. 30 by default.
    step_limit
        The same while the processes compute, as in a long prefill: the engine is ended only then. None, the
        default: 300, or ``stall_after`` if that is more.
    probe_interval
        Seconds between two checks; a stall is found at the latest so long after its limit. 2 by default.
    failure_threshold
        ``(k, n)``: an engine that ``k`` of the last ``n`` checks found doing nothing though requests wait is
        SUSPECT, and gets no new ones until it delivers a token; ``(3, 5)`` by default. ``stall_after`` must
        leave time for that: at least ``k * probe_interval``.
    total_start_timeout
        Seconds a start may take in all. None, the default: four times ``start_timeout``.
    crash_loop_limit
        That many incarnations in a row that die before delivering a token end the pool, or the server,
        whatever the intensity of its supervisor; 3 by default, None: no such rule. A server that does not
        count tokens (``--disable-log-stats``) has done useful work when it has been healthy for a minute.
    recoveries
        How often within the ``period`` of its supervisor an engine that reports a fault by vLLM's fault
        tolerance may recover in place before it is restarted instead; 3 by default.
    recovery_timeout
        Seconds a recovery in place may take; 10 by default.
    """

    stall_after: float
    step_limit: float | None
    probe_interval: float
    failure_threshold: tuple[int, int]
    total_start_timeout: float | None
    crash_loop_limit: int | None
    recoveries: int
    recovery_timeout: float


class PoolArguments(TypedDict, total=False):
    """The supervisor of a pool's engines, and the limits of its requests.

    Parameters
    ----------
    restart
        When the pool's own supervisor is restarted after the pool gave up; ``Restart.PERMANENT`` by default.
    backoff
        Delays before an engine is restarted. None, the default: none before the first restart, then 1 s to 30
        s with full jitter.
    intensity, period
        How many restarts of its engines are tolerated within how many seconds; 5 and 3600 by default.
    queue_limit
        How many requests may wait; 1000 by default.
    request_timeout
        Seconds a request may take, unless it brings its own timeout; 600 by default.
    max_attempts
        How many incarnations a request is tried on, unless it brings its own number; 5 by default.
    gate
        An async function that is called with a [`Gate`][rayvisor.Gate] whenever an engine has come up, spares
        included, or is declared stale (``supervisor.mark_stale("llm")``): the engine serves once it has
        succeeded. It has three tries, each at most ``start_timeout`` long; then the engine is restarted. If
        it returns a whole number, that is the version of the engine's weights, which each chunk carries from
        then on.
    on_weights_changed
        What happens to a request when the version changes under it, unless it brings its own choice:
        ``"splice"``, the default, continues behind the delivered tokens, ``"restart"`` starts it again (its
        next chunk has ``restarted`` set), ``"fail"`` fails it with ``WeightsChangedError`` if anything had
        been delivered. A request leaves an engine as soon as that is declared stale, so each token is of one
        known version.
    instructed_by
        Who instructs an engine that reports a fault to recover. ``"supervisor"``, the default: immediately,
        every rank. ``"operator"``: an outside orchestrator, by ``supervisor.set_recovery_instruction`` or the
        control socket; until then the engines are PAUSED.FAULTED. An engine that has not recovered within
        ``recovery_timeout`` is restarted.
    """

    restart: Restart
    backoff: Backoff | None
    intensity: int
    period: float
    queue_limit: int
    request_timeout: float
    max_attempts: int
    gate: Callable[[Gate], Awaitable[object]] | None
    on_weights_changed: Literal["splice", "restart", "fail"]
    instructed_by: Literal["supervisor", "operator"]


class ActorArguments(RestartArguments, HookArguments, PlacementArguments, total=False):
    """Keywords of [`actor`][rayvisor.actor].

    All of [`RestartArguments`][rayvisor.specs.RestartArguments],
    [`HookArguments`][rayvisor.specs.HookArguments] and
    [`PlacementArguments`][rayvisor.specs.PlacementArguments].
    """


class AdoptArguments(RestartArguments, HookArguments, total=False):
    """Keywords of [`adopt`][rayvisor.adopt].

    All of [`RestartArguments`][rayvisor.specs.RestartArguments] and
    [`HookArguments`][rayvisor.specs.HookArguments].
    """


class EngineGroupArguments(PoolArguments, HealthArguments, PlacementArguments, total=False):
    """Keywords of [`engine_group`][rayvisor.engine_group].

    All of [`PoolArguments`][rayvisor.specs.PoolArguments],
    [`HealthArguments`][rayvisor.specs.HealthArguments] and
    [`PlacementArguments`][rayvisor.specs.PlacementArguments].
    """


class EnginePoolArguments(EngineGroupArguments, total=False):
    """Keywords of [`engine_pool`][rayvisor.engine_pool].

    All of [`EngineGroupArguments`][rayvisor.specs.EngineGroupArguments], and:

    Parameters
    ----------
    max_concurrent_starts
        How many engines start at the same time; 4 by default.
    """

    max_concurrent_starts: int


class ServerArguments(RestartArguments, HealthArguments, PlacementArguments, total=False):
    """Keywords of [`server`][rayvisor.server].

    All of [`RestartArguments`][rayvisor.specs.RestartArguments],
    [`HealthArguments`][rayvisor.specs.HealthArguments] and
    [`PlacementArguments`][rayvisor.specs.PlacementArguments], and:

    Parameters
    ----------
    host
        The address the server listens at; ``"127.0.0.1"`` by default. ``"0.0.0.0"`` opens it to other
        machines; its URL then has the address of this machine, or of the node on which it runs.
    port
        Its port; a port that is taken is a PERMANENT fault that names it. 0, the default: a free one. The
        next incarnation gets the same port again, unless another program has taken it meanwhile.
    env
        Environment variables of the process, beside those of the host.
    """

    host: str
    port: int
    env: Mapping[str, str] | None


_DEFAULTS: Final[Mapping[str, Any]] = {
    "restart": Restart.PERMANENT,
    "significant": False,
    "backoff": None,
    **dict.fromkeys(PlacementArguments.__annotations__),
    **dict.fromkeys(("probe", "pause", "resume", "drain")),
    "probe_interval": 2.0,
    "probe_timeout": 5.0,
    "failure_threshold": (3, 5),
    "stall_after": 30.0,
    "step_limit": None,
    "total_start_timeout": None,
    "crash_loop_limit": 3,
    "recoveries": 3,
    "recovery_timeout": 10.0,
    "intensity": 5,
    "period": 3600.0,
    "queue_limit": 1000,
    "request_timeout": 600.0,
    "max_attempts": 5,
    "gate": None,
    "on_weights_changed": "splice",
    "instructed_by": "supervisor",
    "max_concurrent_starts": 4,
    "host": "127.0.0.1",
    "port": 0,
    "env": None,
}
_DESCRIBED: Final = (
    RestartArguments,
    PlacementArguments,
    HookArguments,
    HealthArguments,
    PoolArguments,
    EnginePoolArguments,
    ServerArguments,
)


class Argument(NamedTuple):
    """One argument of a function that makes children, an argument of a group among them."""

    name: str
    hint: Any
    default: Any
    """``inspect.Parameter.empty`` if it has none."""
    described_in: Any
    """The function or the group whose docstring describes it."""


def arguments_of(function: Any) -> list[Argument]:
    """List the arguments of a function or of a group, those of the group a function takes included.

    Examples
    --------
    >>> from rayvisor import coroutine
    >>> [argument.name for argument in arguments_of(coroutine)][-4:]
    ['start_timeout', 'restart', 'significant', 'backoff']
    """
    hints = get_type_hints(function)
    if isinstance(function, type):
        return [
            Argument(name, hint, _DEFAULTS[name], _group_of(name, function)) for name, hint in hints.items()
        ]
    found: list[Argument] = []
    for name, each in inspect.signature(function).parameters.items():
        if each.kind is inspect.Parameter.VAR_KEYWORD:
            (group,) = get_args(hints[name])
            found += arguments_of(group)
        else:
            found.append(Argument(name, hints[name], each.default, function))
    return found


def _group_of(name: str, group: type) -> type:
    """The group that describes an argument of a group of groups."""
    # Python does not keep the bases of a TypedDict; those that describe least come first here.
    return next(
        each
        for each in _DESCRIBED
        if name in each.__annotations__ and each.__annotations__.keys() <= group.__annotations__.keys()
    )


def complete(function: str, group: type, given: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of a group with the defaults of those that are not given.

    Raises
    ------
    TypeError
        There is no such argument; the message names the one that may have been meant.
    """
    known = group.__annotations__
    for name in given:
        if name not in known:
            near = get_close_matches(name, list(known), 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{meant}")
    return {name: _DEFAULTS[name] for name in known} | dict(given)


def actor_options(given: Mapping[str, Any]) -> ActorOptions:
    """Make the options of an actor from [`PlacementArguments`][rayvisor.specs.PlacementArguments]."""
    options = {name: given[name] for name in PlacementArguments.__annotations__ if given[name] is not None}
    for name in {"resources", "runtime_env"} & options.keys():
        options[name] = dict(options[name])
    return ActorOptions(**options)


def actor_hooks(given: Mapping[str, Any]) -> ActorHooks:
    """Make the hooks of an actor from [`HookArguments`][rayvisor.specs.HookArguments]."""
    # Whether an actor computes makes no difference: only its answers count.
    limits = StallLimits(
        stall_after=given["stall_after"],
        step_limit=given["stall_after"],
        probe_interval=given["probe_interval"],
        failure_threshold=given["failure_threshold"],
    )
    hooks = {name: given[name] for name in ("probe", "pause", "resume", "drain", "probe_timeout")}
    return ActorHooks(**hooks, limits=limits)


def stall_limits(given: Mapping[str, Any]) -> StallLimits:
    """Make the limits of an engine from [`HealthArguments`][rayvisor.specs.HealthArguments]."""
    limits = {
        name: given[name]
        for name in ("stall_after", "probe_interval", "failure_threshold", "total_start_timeout")
    }
    step_limit = given["step_limit"]
    if step_limit is None and isinstance(given["stall_after"], int | float):
        step_limit = max(300.0, given["stall_after"])
    return StallLimits(**limits, step_limit=step_limit)
