"""The content of a host actor: the engine host, and the reaper that guards its processes.

Every answer is plain data. An exception is turned into a `Failure` here, in the host, so that the driver
never has to import a class of an engine to read it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rayvisor._backends.host.engine import EngineStartFailedError
from rayvisor._backends.host.host import EngineHost
from rayvisor._backends.process.guard import Guard
from rayvisor._backends.process.stack_dump import StackDumper
from rayvisor._backends.process.threads import run_in_thread
from rayvisor._core.protocol.causes import Causes, plain_causes
from rayvisor._core.protocol.wire import EngineInfo, GenerateCommand, HostDescription, HostItem
from rayvisor._log import get_logger
from rayvisor.faults import Termination
from rayvisor.specs import StallLimits
from rayvisor.specs.limits import PATIENT
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["Failure", "HostActor", "HostHello"]

log = get_logger("rayvisor.host")


class HostHello(NamedTuple):
    """A host's first answer."""

    description: HostDescription
    node_id: str
    reaper: int
    """Pid of the reaper that guards it, 0 if none could be started."""
    log_file: str
    """File that the host process's standard error goes to; empty if there is none."""


class Failure(NamedTuple):
    """A call that raised inside the host."""

    causes: Causes
    traceback: str


def _failure(error: Exception) -> Failure:
    return Failure(plain_causes(error), "".join(traceback.format_exception(error)))


class HostActor:
    """One engine host inside an actor.

    Parameters
    ----------
    key
        The host's key: every process that it starts carries it in its environment.
    child, epoch, engine
        As for `EngineHost`.
    timeouts
        For the host, its reaper and its engine.
    """

    def __init__(
        self, key: str, child: str, epoch: int, engine: str, *, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        self._timeouts = timeouts
        self._guard: Guard | None = None
        self._guarding = asyncio.Lock()
        try:
            # A worker's parent is its raylet. Ray's own check for its death (for pid 1) misses cases.
            self._guard = Guard(key, with_parent=True, timeouts=timeouts.process)
        except (OSError, RuntimeError):
            # The node agent still kills what is left. The host works without a reaper, and reports that.
            log.exception("host.reaper.failed", child=child, epoch=epoch)
        self._host = EngineHost(child, epoch, engine, timeouts=timeouts)
        self._stack: StackDumper | None = None

    async def describe(self, node_id: str) -> HostHello | Failure:
        try:
            reaper = await self._reaper_pid()
            if self._stack is None:
                self._stack = StackDumper(self._timeouts.ray.loop_blocked)
            description = (await self._host.describe())._replace(stack_file=self._stack.path)
            return HostHello(description, node_id, reaper, _standard_error())
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)

    async def _reaper_pid(self) -> int:
        """Return the pid of the reaper once it watches this process; 0 if it could not be started."""
        async with self._guarding:
            if self._guard is None:
                return 0
            try:
                return await run_in_thread(self._guard.wait_ready)
            except RuntimeError:
                log.exception("host.reaper.failed", child=self._host.child, epoch=self._host.epoch)
                self._guard = None
                return 0

    async def ensure_started(
        self, incarnation: int, arguments: Mapping[str, Any], timeout: float, limits: StallLimits = PATIENT
    ) -> EngineInfo | Termination | Failure:
        try:
            info = await self._host.ensure_started(incarnation, arguments, timeout, limits)
        except EngineStartFailedError as failed:
            return failed.termination
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)
        if self._guard is not None:
            self._guard.record(info.processes)
        return info

    async def stop_engine(self, incarnation: int, grace: float) -> Failure | None:
        try:
            await self._host.stop_engine(incarnation, grace)
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)
        return None

    async def submit(self, incarnation: int, orders: Sequence[GenerateCommand]) -> Failure | None:
        try:
            await self._host.submit(incarnation, orders)
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)
        return None

    async def abort(self, requests: Sequence[tuple[str, int]]) -> Failure | None:
        try:
            await self._host.abort(requests)
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)
        return None

    async def flow(self, request: str, attempt: int, is_open: bool) -> Failure | None:  # noqa: FBT001 - the wire's
        try:
            await self._host.flow(request, attempt, is_open=is_open)
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)
        return None

    async def ask(
        self, incarnation: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float
    ) -> Any:
        try:
            return await self._host.ask(incarnation, method, args, kwargs, timeout)
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)

    async def stream(self) -> AsyncIterator[list[HostItem] | Failure]:
        try:
            async for items in self._host.stream():
                yield items
        except Exception as error:  # noqa: BLE001 - sent as plain data
            yield _failure(error)


def _standard_error() -> str:
    """Return the file that this process's standard error goes to; empty if it is no file."""
    try:
        path = Path("/proc/self/fd/2").readlink()
    except OSError:
        return ""
    return str(path) if path.is_absolute() else ""
