"""Children that are servers: ``vllm serve`` and what a program sees of it.

spec = rv.SupervisorSpec(children=[rv.server("web", model="/models/small", port=8000)])
async with rv.Supervisor(spec) as sup:
    url = await sup["web"].serving()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rayvisor._validation import is_whole, one_of
from rayvisor.errors import SpecError
from rayvisor.specs.backoff import Backoff
from rayvisor.specs.engines import EngineStart
from rayvisor.specs.limits import StallLimits
from rayvisor.specs.placement import ActorOptions, NodePin, PlacementOptions
from rayvisor.specs.server_flags import SETTLED, has_flag, sizes, to_flags
from rayvisor.specs.tree import ChildSpec, Restart, Shutdown

__all__ = ["ServerStart", "server"]

_MOST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStart(EngineStart):
    """An OpenAI-compatible server process, started by a host."""

    engine: str = "server"
    kind: str = "server"

    def gpu_arguments(self) -> Mapping[str, Any] | None:
        """What says how many GPUs it takes; None for one that takes none."""
        return sizes(self.arguments["args"]) if self.arguments["program"] == "vllm" else None

    def arguments_after(self, url: str) -> Mapping[str, Any]:
        """Its arguments, where the incarnation before was at ``url``: it stays there if it can."""
        return {**self.arguments, "port_before": (urlsplit(url).port or 0) if url else 0}


def server(  # noqa: PLR0913 - keywords, each of its own meaning
    id: str,  # noqa: A002 - OTP's word for it
    *,
    model: str,
    args: Sequence[str] = (),
    engine_args: Mapping[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    env: Mapping[str, str] | None = None,
    engine: str = "vllm",
    restart: Restart = Restart.PERMANENT,
    shutdown: Shutdown | float = 20.0,
    significant: bool = False,
    backoff: Backoff | None = None,
    start_timeout: float = 300.0,
    total_start_timeout: float | None = None,
    stall_after: float = 30.0,
    step_limit: float | None = None,
    probe_interval: float = 2.0,
    failure_threshold: tuple[int, int] = (3, 5),
    crash_loop_limit: int | None = 3,
    recoveries: int = 3,
    recovery_timeout: float = 10.0,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    scheduling: str | NodePin | None = None,
    placement: PlacementOptions | None = None,
) -> ChildSpec:
    """Make a child of an OpenAI-compatible server: ``vllm serve`` as a supervised process.

    Where the tree runs on Ray the process runs below an actor on the cluster; with
    ``Supervisor(local=True)`` on this machine. It serves once its port is open and ``/health`` says 200.
    From then on it is watched as engines are: for the end of any of its processes, for what does not move
    while it has requests (``/metrics``), for a scheduler that does not answer (``/health``), and for what its
    fault tolerance reports. It goes as a whole: no process of it outlives it, also where the driver is
    killed.

    Parameters
    ----------
    id
        Name of the child; ``supervisor[id]`` is its [`ServerRef`][rayvisor.ServerRef], which knows the URL.
    model
        Name or folder of the model.
    args
        More words for the command line, as they are: ``["--max-model-len", "4096"]``.
    engine_args
        The same by name: ``{"max_model_len": 4096}``. They come before ``args``, so those win.
    host
        The address it listens at. ``"0.0.0.0"`` opens it to other machines; its URL then has this machine's
        address, or that of the node on which it runs.
    port
        The port; one that is taken is a PERMANENT fault that names it. 0: one that is free. The next
        incarnation has the same one again, unless somebody else has taken it meanwhile.
    env
        Environment variables of the process, beside those of the host.
    engine
        ``"vllm"``, or ``"sim"`` for a simulated server.
    restart, significant, backoff
        As in [`ChildSpec`][rayvisor.ChildSpec].
    shutdown
        Seconds it may take to end after SIGTERM before it is killed.
    start_timeout
        Seconds that its start may go without progress: another phase or another line of its log, or
        processor time of its processes.
    total_start_timeout
        Seconds a start may take in all. Default: four times ``start_timeout``.
    stall_after
        Seconds in which nothing moves though it has requests, or in which its front does not answer, while
        its processes do nothing: then it has stalled, and is ended and restarted.
    step_limit
        The same while its processes compute. Default: 300, or ``stall_after`` if that is more.
    probe_interval
        Seconds between two looks at it.
    failure_threshold
        ``(k, n)``: a server that ``k`` of the last ``n`` looks found doing nothing is SUSPECT.
    crash_loop_limit
        That many incarnations in a row that die before they have generated a token for anybody end the child,
        whatever its supervisor's window says. A server that does not count tokens (``--disable-log-stats``)
        has done useful work when it has been well for a minute.
    recoveries, recovery_timeout
        How often a server that reports a fault may recover in place, and how many seconds that may take.
    num_cpus, num_gpus, resources, memory, runtime_env, scheduling, placement
        What its host asks of Ray. ``num_gpus`` is by default tensor x pipeline x (local) data parallel size,
        and none on the CPU.

    Raises
    ------
    SpecError
        When a value cannot work; also for an option that is settled here, as ``--port``.

    Examples
    --------
    >>> web = server("web", model="/models/small", port=8000, engine_args={"max_model_len": 4096})
    >>> web.start.arguments["args"]
    ('--max-model-len', '4096')
    """
    if not _is_text(model):
        raise SpecError("model", model, "must be the name or the folder of a model")
    one_of("engine", engine, ("vllm", "sim"))
    if isinstance(args, str) or not all(word == "" or _is_text(word) for word in args):
        raise SpecError("args", args, "must be a list of words, as on a command line: ['--seed', '7']")
    if not isinstance({} if engine_args is None else engine_args, Mapping):
        raise SpecError("engine_args", engine_args, "must be a mapping of arguments by name")
    if not _is_text(host):
        raise SpecError("host", host, "must be an address to listen at, as '127.0.0.1' or '0.0.0.0'")
    if not is_whole(port, 0) or port > _MOST_PORT:
        raise SpecError("port", port, f"must be a port, 1 to {_MOST_PORT}, or 0 for any that is free")
    environment = dict(env or {})
    if not all(isinstance(word, str) for pair in environment.items() for word in pair):
        raise SpecError("env", env, "must be a mapping of names to texts")
    words = (*to_flags(engine_args or {}), *args)
    for option, where in SETTLED.items():
        if has_flag(words, option):
            raise SpecError("args", list(args), f"must be without {option}: use {where}")
    return ChildSpec(
        id=id,
        start=ServerStart(
            arguments={
                "program": engine,
                "model": model,
                "args": words,
                "host": host,
                "port": port,
                "env": environment,
                "probe_interval": probe_interval,
            },
            options=ActorOptions(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=dict(resources or {}),
                memory=memory,
                runtime_env=dict(runtime_env or {}),
                scheduling=scheduling,
                placement=placement,
            ),
            limits=StallLimits(
                stall_after=stall_after,
                step_limit=max(300.0, stall_after) if step_limit is None else step_limit,
                probe_interval=probe_interval,
                failure_threshold=failure_threshold,
                total_start_timeout=total_start_timeout,
            ),
        ),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        backoff=backoff,
        start_timeout=start_timeout,
        crash_loop_limit=crash_loop_limit,
        retry_first_start=True,
        recoveries=recoveries,
        recovery_timeout=recovery_timeout,
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
