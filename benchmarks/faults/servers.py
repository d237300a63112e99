"""Rows about servers."""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable
from tempfile import TemporaryDirectory
from typing import Any

import rayvisor as rv
from benchmarks.faults.engines import killed, stopped
from benchmarks.faults.rows import Row
from benchmarks.faults.trial import Trial
from benchmarks.tree import engine_arguments
from rayvisor.faults import FaultClass

__all__ = ["SERVER_ROWS"]

FATAL, PERMANENT = FaultClass.FATAL, FaultClass.PERMANENT
STALL: dict[str, Any] = {"stall_after": 1.5, "probe_interval": 0.4}
"""Limits, in seconds, for rows in which a process hangs."""
NO_MODEL = "^OSError|^ValueError|^ValidationError"


def server(trial: Trial, **options: Any) -> rv.ChildSpec:
    """Return a server ``web``."""
    given = {**engine_arguments(trial.engine)}
    if trial.engine == "vllm":
        del given["disable_log_stats"]  # its statistics show a hang
        given["kv_cache_memory_bytes"] = 1 << 28
    model = options.pop("model", given.pop("model", "sim"))
    if trial.local:
        options.setdefault("num_cpus", None)
    else:
        options.setdefault("num_cpus", 0.5)
    return rv.server(
        "web", model=model, engine=trial.engine, engine_args=given, start_timeout=120.0, **options
    )


async def signalled(trial: Trial, victim: str, number: int = signal.SIGKILL, **options: Any) -> None:
    """Send a signal to a process of a serving server."""
    async with trial.tree(server(trial, **options)) as tree:
        await tree.supervisor["web"].serving()
        trial.signal(tree, victim, number, "web")
        await trial.wait_recovered(tree, "web")
        trial.observe("web")


async def wrong_model(trial: Trial) -> None:
    """Start a server with an empty model folder."""
    with TemporaryDirectory() as folder:
        await trial.run_failing_start(server(trial, model=folder))
    trial.observe("web")


async def port_taken(trial: Trial) -> None:
    """Start a server whose port is in use."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        await trial.run_failing_start(server(trial, port=other.getsockname()[1]))
    trial.observe("web")


def server_row(
    name: str, fault_class: FaultClass, root: str, response: str, run: Callable[[Trial], Awaitable[None]]
) -> Row:
    """Return a row about a server, whose host may be any process."""
    return Row(name, fault_class, root, response, run, host=False)


SERVER_ROWS: tuple[Row, ...] = (
    server_row(
        "kill server", FATAL, killed("APIServer"), "restart engine", lambda s: signalled(s, "APIServer")
    ),
    server_row(
        "kill server's EngineCore", FATAL, killed("EngineCore"), "restart engine",
        lambda s: signalled(s, "EngineCore"),
    ),
    server_row(
        "SIGSTOP server", FATAL, stopped("APIServer"), "restart engine",
        lambda s: signalled(s, "APIServer", signal.SIGSTOP, **STALL),
    ),
    server_row(
        "SIGSTOP server's EngineCore", FATAL, stopped("EngineCore"), "restart engine",
        lambda s: signalled(s, "EngineCore", signal.SIGSTOP, **STALL),
    ),
    server_row("server's wrong model", PERMANENT, NO_MODEL, "give up", wrong_model),
    server_row("server's port taken", PERMANENT, r"^PortTakenError: .*port \d+ of", "give up", port_taken),
)  # fmt: skip
