"""Children that are servers: ``vllm serve`` as a supervised process.

spec = rv.SupervisorSpec(children=[rv.server("web", model="/models/small", port=8000)])
async with rv.Supervisor(spec) as sup:
    url = await sup["web"].serving()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack
from urllib.parse import urlsplit

from rayvisor._redaction import masked_repr
from rayvisor._validation import is_whole, one_of
from rayvisor.errors import SpecError
from rayvisor.specs.arguments import ServerArguments, actor_options, complete, stall_limits
from rayvisor.specs.engines import EngineStart
from rayvisor.specs.server_flags import SETTLED, has_flag, sizes, to_flags
from rayvisor.specs.tree import ChildSpec, Shutdown
from rayvisor.status import ChildKind

__all__ = ["ServerStart", "server"]

_MOST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStart(EngineStart):
    """Start spec of an OpenAI-compatible server process below a host actor."""

    engine: str = "server"
    kind: str = ChildKind.SERVER

    def __repr__(self) -> str:
        return masked_repr(self)

    def gpu_arguments(self) -> Mapping[str, Any] | None:
        """Return the arguments that say how many GPUs it takes; None if it takes none."""
        return sizes(self.arguments["args"]) if self.arguments["program"] == "vllm" else None

    def arguments_after(self, url: str) -> Mapping[str, Any]:
        """Return its arguments if the previous incarnation was at ``url``: it stays there if it can."""
        return {**self.arguments, "port_before": (urlsplit(url).port or 0) if url else 0}


def server(
    id: str,
    *,
    model: str,
    args: Sequence[str] = (),
    engine_args: Mapping[str, Any] | None = None,
    engine: str = "vllm",
    shutdown: Shutdown | float = 20.0,
    start_timeout: float = 300.0,
    **arguments: Unpack[ServerArguments],
) -> ChildSpec:
    """Make a child of an OpenAI-compatible server: ``vllm serve`` as a supervised process.

    If the tree runs on Ray the process runs below an actor on the cluster; with ``Supervisor(local=True)`` on
    this machine. It serves once its port is open and ``/health`` answers 200. From then on it is watched as
    engines are: for the end of any of its processes, for requests that make no progress (``/metrics``), for a
    scheduler that does not answer (``/health``), and for faults that its fault tolerance reports. It is ended
    as a whole: none of its processes outlives it, even if the driver is killed.

    Parameters
    ----------
    id
        Name of the child; ``supervisor[id]`` is its [`ServerRef`][rayvisor.ServerRef], which knows the URL.
    model
        Name or folder of the model.
    args
        More arguments for the command line, unchanged: ``["--max-model-len", "4096"]``.
    engine_args
        The same by name: ``{"max_model_len": 4096}``. They come before ``args``, so those take precedence.
    engine
        ``"vllm"``, or ``"sim"`` for a simulated server.
    shutdown
        Seconds it may take to end after SIGTERM before it is killed.
    start_timeout
        Seconds that its start may go without progress: another phase, another line of its log, or processor
        time of its processes.
    arguments
        Its address and environment ([`ServerArguments`][rayvisor.specs.ServerArguments]), when it is
        restarted ([`RestartArguments`][rayvisor.specs.RestartArguments]), how it is watched
        ([`HealthArguments`][rayvisor.specs.HealthArguments]), and what its host asks of Ray
        ([`PlacementArguments`][rayvisor.specs.PlacementArguments]).

    Raises
    ------
    SpecError
        When a value cannot work; also for an option that is set here, as ``--port``.

    Examples
    --------
    >>> web = server("web", model="/models/small", port=8000, engine_args={"max_model_len": 4096})
    >>> web.start.arguments["args"]
    ('--max-model-len', '4096')
    """
    given = complete("server", ServerArguments, arguments)
    host, port, env = given["host"], given["port"], given["env"]
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
                "probe_interval": given["probe_interval"],
            },
            options=actor_options(given),
            limits=stall_limits(given),
        ),
        restart=given["restart"],
        shutdown=shutdown,
        significant=given["significant"],
        backoff=given["backoff"],
        start_timeout=start_timeout,
        crash_loop_limit=given["crash_loop_limit"],
        retry_first_start=True,
        recoveries=given["recoveries"],
        recovery_timeout=given["recovery_timeout"],
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
