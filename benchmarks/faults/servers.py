"""Rows in which a server is meant."""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable
from tempfile import TemporaryDirectory
from typing import Any

import rayvisor as rv
from benchmarks.faults.engines import killed, stopped
from benchmarks.faults.rows import Row
from benchmarks.faults.scene import Scene
from benchmarks.tree import engine_arguments
from rayvisor.faults import FaultClass

__all__ = ["SERVER_ROWS"]

FATAL, PERMANENT = FaultClass.FATAL, FaultClass.PERMANENT
STALL: dict[str, Any] = {"stall_after": 1.5, "probe_interval": 0.4}
"""Limits of the rows in which something hangs, in seconds."""
NO_MODEL = "^OSError|^ValueError|^ValidationError"


def server(scene: Scene, **options: Any) -> rv.ChildSpec:
    """A server ``web``."""
    given = {**engine_arguments(scene.engine)}
    if scene.engine == "vllm":
        del given["disable_log_stats"]  # it counts, so that a hang is seen
        given["kv_cache_memory_bytes"] = 1 << 28
    model = options.pop("model", given.pop("model", "sim"))
    if scene.local:
        options.setdefault("num_cpus", None)
    else:
        options.setdefault("num_cpus", 0.5)
    return rv.server(
        "web", model=model, engine=scene.engine, engine_args=given, start_timeout=120.0, **options
    )


async def signalled(scene: Scene, victim: str, number: int = signal.SIGKILL, **options: Any) -> None:
    """A signal to a process of a server that serves."""
    async with scene.tree(server(scene, **options)) as tree:
        await tree.supervisor["web"].serving()
        scene.signal(tree, victim, number, "web")
        await scene.back(tree, "web")
        scene.look("web")


async def wrong_model(scene: Scene) -> None:
    """There is no model in the folder."""
    with TemporaryDirectory() as folder:
        await scene.come_to_nothing(server(scene, model=folder))
    scene.look("web")


async def port_taken(scene: Scene) -> None:
    """Somebody else listens at its port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        await scene.come_to_nothing(server(scene, port=other.getsockname()[1]))
    scene.look("web")


def server_row(
    name: str, fault_class: FaultClass, root: str, rung: str, play: Callable[[Scene], Awaitable[None]]
) -> Row:
    """A row in which a server is meant: its host may be any process."""
    return Row(name, fault_class, root, rung, play, host=False)


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
