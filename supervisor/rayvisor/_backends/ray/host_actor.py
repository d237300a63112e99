"""What lives inside a host actor: the engine host, and the reaper that guards its processes.

Every answer is plain data. An exception is turned into `Failure` here, in the host, so that no class of an
engine's ever has to be imported by the driver to read it.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rayvisor._backends.host.engine import EngineStartFailedError
from rayvisor._backends.host.host import EngineHost
from rayvisor._backends.process.guard import Guard
from rayvisor._backends.process.stack_dump import StackKeeper
from rayvisor._core.protocol.causes import Causes, plain_causes
from rayvisor._core.protocol.wire import EngineInfo, GenerateCommand, HostDescription, HostItem
from rayvisor._log import get_logger
from rayvisor.faults import Termination
from rayvisor.specs import StallLimits
from rayvisor.specs.limits import PATIENT

__all__ = ["Failure", "HostActor", "HostHello"]

log = get_logger("rayvisor.host")

_HELD_UP_SECONDS = 0.5
"""When the event loop has been held up for so long, its stack is written down."""


class HostHello(NamedTuple):
    """A host's first answer."""

    description: HostDescription
    node_id: str
    reaper: int
    """Pid of the reaper that guards it, 0 if none could be started."""
    log_file: str
    """What the host process itself writes goes there."""


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
    """

    def __init__(self, key: str, child: str, epoch: int, engine: str) -> None:
        self._guard: Guard | None = None
        try:
            # A worker's parent is its raylet. Ray's own check for its death misses some (it looks for pid 1).
            self._guard = Guard(key, with_parent=True)
        except (OSError, RuntimeError):
            # The node agent still ends what is left; the host works without a reaper, and says so.
            log.exception("host.reaper.failed", child=child, epoch=epoch)
        self._host = EngineHost(child, epoch, engine)
        self._stack: StackKeeper | None = None

    async def describe(self, node_id: str) -> HostHello | Failure:
        reaper = 0
        try:
            if self._guard is not None:
                reaper = self._guard.wait_ready()
            if self._stack is None:
                self._stack = StackKeeper(_HELD_UP_SECONDS)
            description = (await self._host.describe())._replace(stack_file=self._stack.path)
            return HostHello(description, node_id, reaper, _standard_error())
        except Exception as error:  # noqa: BLE001 - sent as plain data
            return _failure(error)

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
    """The file that this process's standard error goes to, if it is one."""
    try:
        path = Path("/proc/self/fd/2").readlink()
    except OSError:
        return ""
    return str(path) if path.is_absolute() else ""
