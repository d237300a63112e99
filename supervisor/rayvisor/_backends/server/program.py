"""The process of a server: its command, its environment, its output, and its guard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayvisor._backends.process.engine_tree import TAG
from rayvisor._backends.process.guard import Guard
from rayvisor._backends.process.reaper import MARKER
from rayvisor._log import get_logger
from rayvisor.specs.server_flags import has_flag
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ProcessTimeouts

__all__ = ["TITLE", "ServerProgram", "check_model", "command_of"]

log = get_logger("rayvisor.server")

TITLE = "VLLM::APIServer"
"""Name of the top process in faults and listings; the process sets no title itself."""

_ADDED_OPTIONS: Mapping[str, tuple[str, ...]] = {
    # It counts requests that the engine has not begun with.
    "--enable-server-load-tracking": ("--no-enable-server-load-tracking",),
    # Its log is kept for error messages, and it is polled every second.
    "--disable-access-log-for-endpoints": ("--disable-uvicorn-access-log",),
}
"""Options that are added, unless they or one of their alternatives are given."""
_POLLED_PATHS = "/health,/metrics,/load,/fault_tolerance/status,/v1/fault_tolerance/status"


_PROGRAMS: Mapping[str, str] = {
    "sim": "rayvisor._backends.sim.server",
    "vllm": "rayvisor._backends.vllm.serve",
}
# A bare module takes the place of the package, so that the whole public interface is not imported.
_RUN = (
    "import importlib, sys, types; "
    "package = types.ModuleType('rayvisor'); "
    "package.__path__ = [sys.argv[1]]; "
    "sys.modules['rayvisor'] = package; "
    "importlib.import_module(sys.argv[2]).main(sys.argv[3:])"
)


def command_of(arguments: Mapping[str, Any], port: int) -> list[str]:
    """Return the command line of a server.

    Parameters
    ----------
    arguments
        Arguments of ``rayvisor.server``.
    port
        The port to listen at.
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
        The command line.
    extra
        Environment variables, in addition to those of this process.
    tag
        Tag of its processes.
    log_file
        It writes its output to this file.
    timeouts
        Times of its guard.
    """

    def __init__(
        self,
        command: Sequence[str],
        extra: Mapping[str, str],
        tag: str,
        log_file: str,
        *,
        timeouts: ProcessTimeouts = DEFAULT_TIMEOUTS.process,
    ) -> None:
        self._timeouts = timeouts
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
            self._process = subprocess.Popen(  # noqa: S603 - the command is the tree's spec
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the driver only, which ends its servers in order
            )
        self.pid = self._process.pid
        self._guard: Guard | None = None

    def start_guard(self) -> None:
        """Start a guard that kills it if this process is killed; this blocks for a moment.

        An actor host already has a guard.
        """
        if not self._marker:
            return
        try:
            guard = Guard(
                self._marker,
                with_parent=True,
                child=self.pid,
                log_file=self._log_file,
                timeouts=self._timeouts,
            )
            guard.wait_ready()
        except (OSError, RuntimeError):
            # As long as this process lives, it is still watched and ended.
            log.exception("server.reaper.failed", pid=self.pid)
        else:
            self._guard = guard
            if self.poll() is not None:  # it has ended meanwhile, and nothing else will close the guard
                guard.close()

    def terminate(self) -> None:
        """Send SIGTERM: it ends its engine, and exits."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """Return its exit code once it has ended, negative for a signal; None before."""
        return self._process.poll()

    async def wait(self, timeout: float) -> int | None:
        """Wait until it has ended, for at most ``timeout`` seconds. Return its exit code, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self._process.wait, timeout)
        return None

    def close(self) -> None:
        """Release the guard; no process of the server may be left."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None


def check_model(model: str) -> None:
    """Validate a model as far as possible without vLLM.

    Raises
    ------
    ValueError
        It is a path that does not exist.
    """
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().exists():
        raise ValueError(f"model: {model} does not exist")
