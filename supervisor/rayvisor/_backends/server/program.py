"""The process of a server: its command, its environment, its output, and who ends it if nobody else can."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayvisor._backends.process.engine_tree import TAG
from rayvisor._backends.process.guard import Guard
from rayvisor._backends.process.reaper import MARKER
from rayvisor._log import get_logger
from rayvisor.specs.server_flags import has_flag

__all__ = ["TITLE", "ServerProgram", "check_model", "command_of"]

log = get_logger("rayvisor.server")

TITLE = "VLLM::APIServer"
"""What the process at the top is called in faults and listings: it sets no title itself."""

_POLL_SECONDS = 0.01
_ADDED_OPTIONS: Mapping[str, tuple[str, ...]] = {
    # A request is seen that the engine has not begun with.
    "--enable-server-load-tracking": ("--no-enable-server-load-tracking",),
    # Its log is for its last options: it is asked something every second.
    "--disable-access-log-for-endpoints": ("--disable-uvicorn-access-log",),
}
"""Options that are added, unless they, or one of those that stand for others, are given."""
_POLLED_PATHS = "/health,/metrics,/load,/fault_tolerance/status,/v1/fault_tolerance/status"


_PROGRAMS: Mapping[str, str] = {
    "sim": "rayvisor._backends.sim.server",
    "vllm": "rayvisor._backends.vllm.serve",
}
# A bare module in the package's place: found wherever this one is, and without the whole public interface.
_RUN = (
    "import importlib, sys, types; "
    "package = types.ModuleType('rayvisor'); "
    "package.__path__ = [sys.argv[1]]; "
    "sys.modules['rayvisor'] = package; "
    "importlib.import_module(sys.argv[2]).main(sys.argv[3:])"
)


def command_of(arguments: Mapping[str, Any], port: int) -> list[str]:
    """The command line of a server.

    Parameters
    ----------
    arguments
        As ``rayvisor.server`` makes them.
    port
        The one to listen at.
    """
    options: Sequence[str] = arguments["args"]
    command = [sys.executable, "-c", _RUN, str(Path(__file__).parents[2]), _PROGRAMS[arguments["program"]]]
    command += ["serve", str(arguments["model"])]
    command += ["--host", str(arguments["host"]), "--port", str(port), *options]
    for option, others in _ADDED_OPTIONS.items():
        if not any(has_flag(options, each) for each in (option, *others)):
            command += [option, _POLLED_PATHS] if "endpoints" in option else [option]
    return command


class ServerProgram:
    """One running server process, at the top of its tree.

    Parameters
    ----------
    command
        What to run.
    extra
        Environment variables beside this process's own.
    tag
        By which its processes are known.
    log_file
        Where its output goes.
    """

    def __init__(self, command: Sequence[str], extra: Mapping[str, str], tag: str, log_file: str) -> None:
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            **os.environ,
            **extra,
            TAG: tag,
        }
        self._log_file = log_file
        self._marker = "" if MARKER in os.environ else f"server-{tag}"
        if self._marker:
            environment[MARKER] = self._marker
        with Path(log_file).open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - what the tree's spec asks for
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the driver: it ends its servers in order
            )
        self.pid = self._process.pid
        self._guard: Guard | None = None

    def start_guard(self) -> None:
        """Have it ended if this process is killed; an actor host has its own guard. Blocks for a moment."""
        if not self._marker:
            return
        try:
            guard = Guard(self._marker, with_parent=True, child=self.pid, log_file=self._log_file)
            guard.wait_ready()
        except (OSError, RuntimeError):
            # It is watched and ended all the same, as long as this process lives.
            log.exception("server.reaper.failed", pid=self.pid)
        else:
            self._guard = guard
            if self.poll() is not None:  # it has ended meanwhile, and nobody will let go of it
                guard.close()

    def terminate(self) -> None:
        """SIGTERM: it ends its engine, and leaves."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """Its exit code once it has ended; negative is the number of a signal."""
        return self._process.poll()

    async def wait(self, seconds: float) -> int | None:
        """Wait until it has ended, so long at most; its exit code, or None."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_POLL_SECONDS)
        return self.poll()

    def close(self) -> None:
        """Nothing of it is left: the guard goes by itself."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None


def check_model(model: str) -> None:
    """Find out that a model is not there, where that can be seen without vLLM.

    Raises
    ------
    ValueError
        It is a path at which there is nothing.
    """
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().exists():
        raise ValueError(f"model: {model} does not exist")
