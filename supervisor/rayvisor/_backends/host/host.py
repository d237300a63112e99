"""The host of one engine: takes commands, streams their results, and reports the end of the engine.

A host lives in an actor of its own and outlives its engines: an engine that has ended is followed by the
next incarnation in the same host. It imports nothing heavy, so that it is up quickly and can report why an
engine did not come up.

All its output leaves through **one** stream, a list of items at a time, see `ItemBatcher`.

Three fences make late messages harmless. A command for another incarnation than the one that serves is
returned as lost. An attempt that is not newer than the current one is ignored. An engine of an older
incarnation is never started once a newer one was requested or stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rayvisor._backends.host.address import own_address
from rayvisor._backends.host.batching import ItemBatcher
from rayvisor._backends.host.engine import (
    Engine,
    EngineError,
    EngineGoneError,
    EngineStartFailedError,
    RequestLostError,
    RequestRefusedError,
    SharesResources,
    load_engine,
)
from rayvisor._backends.host.fault_status import ConditionWatch
from rayvisor._backends.host.liveness import LivenessMonitor, StartOverdueError, start_in_time
from rayvisor._backends.host.log_files import LogFiles
from rayvisor._backends.process.engine_tree import process_id
from rayvisor._core.protocol.causes import in_one_line, plain_causes
from rayvisor._core.protocol.wire import (
    EngineInfo,
    GenerateCommand,
    HostDescription,
    HostItem,
    Lost,
    Phase,
    Refused,
    Terminated,
)
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs import StallLimits
from rayvisor.specs.limits import PATIENT
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["EngineHost", "HostDescription"]

log = get_logger("rayvisor.host")

_HOLDING = frozenset({"pause_generation", "sleep"})
_GOING_ON = frozenset({"resume_generation", "wake_up"})


class _Pump:
    """One command in progress."""

    __slots__ = ("attempt", "open", "task")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.open: asyncio.Event | None = None  # created when a reader is slow for the first time
        self.task: asyncio.Task[None] | None = None


class EngineHost:
    """Runs one engine after the other, and the commands of the current one.

    Parameters
    ----------
    child
        Path of the child, for example ``"llm/1"``.
    epoch
        The number of this host process among those of its child: 1, 2, ...
    engine
        Kind of engine: ``"vllm"``, ``"sim"`` or ``"server"``.
    log_folder
        The folder of the engines' logs; empty: ``$RAYVISOR_LOG_DIR``, or a folder in the temporary one.
    timeouts
        Timeouts and intervals of the host and of its engines.
    """

    def __init__(
        self,
        child: str,
        epoch: int,
        engine: str,
        log_folder: str = "",
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self.child = child
        self.epoch = epoch
        self.kind = engine
        self._timeouts = timeouts
        self._logs = LogFiles(child, log_folder, timeouts=timeouts.host)
        self._log = log.bind(child=child, epoch=epoch)
        self._log_file = ""
        self._engine: Engine | None = None
        self._incarnation = 0
        self._stopped = 0
        self._serving = False
        self._starting: asyncio.Task[EngineInfo] | None = None
        self._sentinel: asyncio.Task[None] | None = None
        self._monitor: LivenessMonitor | None = None
        self._conditions: ConditionWatch | None = None
        self._pumps: dict[str, _Pump] = {}
        self._release_shared: Callable[[], None] | None = None
        self._batcher = ItemBatcher(timeouts=timeouts.host)
        self._put = self._batcher.put

    # -- description ----------------------------------------------------------------------------

    async def describe(self) -> HostDescription:
        """Return the process of this host and the address of its machine."""
        return HostDescription(process_id(os.getpid()), own_address())

    async def watch(self) -> None:
        """Never return: the call fails when the host ends, which is how its caller is notified."""
        await asyncio.Event().wait()

    # -- starting and stopping ------------------------------------------------------------------

    async def ensure_started(
        self, incarnation: int, arguments: Mapping[str, Any], timeout: float, limits: StallLimits = PATIENT
    ) -> EngineInfo:
        """Start an incarnation, or wait for its start that is under way, or return its result again.

        Parameters
        ----------
        incarnation
            The incarnation. A newer one ends the older one's engine first.
        arguments
            The engine's arguments.
        timeout
            Seconds that the start may go without progress, see ``start_in_time``.
        limits
            How long the engine may make no progress, once it serves.

        Raises
        ------
        EngineStartFailedError
            It did not come up; the termination says why. None of its processes is left.
        """
        if incarnation < self._incarnation or incarnation <= self._stopped:
            raise EngineStartFailedError(self._stale(incarnation))
        if incarnation > self._incarnation:
            older, self._incarnation = self._incarnation, incarnation
            self._batcher.beat = limits.beat
            self._starting = asyncio.create_task(self._start(incarnation, older, arguments, timeout, limits))
            self._starting.add_done_callback(_retrieve)
        if self._starting is None:
            raise EngineStartFailedError(self._stale(incarnation))
        # A caller that is cancelled does not cancel the start.
        return await asyncio.shield(self._starting)

    async def _start(
        self, incarnation: int, older: int, arguments: Mapping[str, Any], timeout: float, limits: StallLimits
    ) -> EngineInfo:
        began = time.monotonic()
        if self._engine is not None:
            await self._end(self._engine, older, self._timeouts.host.predecessor_end)
        if incarnation != self._incarnation or incarnation <= self._stopped:
            raise EngineStartFailedError(self._stale(incarnation))
        phase = "importing"

        def report(reached: str, detail: str) -> None:
            nonlocal phase
            phase = reached
            self._put(Phase(incarnation, reached, detail, time.monotonic() - began))

        try:
            engine = self._load(incarnation, arguments)
        except Exception as error:  # noqa: BLE001 - it comes out as plain data
            wrong = isinstance(error, TypeError | ValueError)
            raise EngineStartFailedError(replace(self._failed(error, phase), permanent=wrong)) from None
        self._engine = engine
        self._log.info("host.engine.starting", incarnation=incarnation, log_file=self._log_file)
        try:
            info = await start_in_time(
                engine, report, timeout, limits.longest(timeout), self._timeouts.host.start_poll
            )
        except EngineStartFailedError as failed:
            self._log.warning("host.engine.start_failed", incarnation=incarnation, cause=str(failed))
            await self._discard(engine)
            raise
        except StartOverdueError as late:
            await self._discard(engine)
            why = Cause("StartTimeout", f"{late}, while {phase}")
            causes = (why, late.held_by) if late.held_by else (why,)
            self._log.warning("host.engine.start_failed", incarnation=incarnation, cause=str(causes[-1]))
            raise EngineStartFailedError(
                Termination(causes=causes, phase=phase, log_file=self._log_file, overdue=True)
            ) from None
        except Exception as error:  # noqa: BLE001 - as above
            await self._discard(engine)
            self._log.exception("host.engine.start_failed", incarnation=incarnation)
            raise EngineStartFailedError(self._failed(error, phase)) from None
        if self._engine is not engine:  # it was stopped at the last moment
            raise EngineStartFailedError(self._stale(incarnation))
        self._serving = True
        self._monitor = LivenessMonitor(engine, incarnation, limits, self._put, self._log_file)
        self._conditions = None
        if info.instructions:
            self._conditions = ConditionWatch(
                engine, incarnation, self._put, self._monitor, self._log_file, timeouts=self._timeouts.host
            )
        self._sentinel = asyncio.create_task(self._await_death(engine, incarnation, self._monitor))
        self._log.info("host.engine.started", incarnation=incarnation, seconds=info.startup_seconds)
        return info

    def _load(self, incarnation: int, arguments: Mapping[str, Any]) -> Engine:
        self._log_file = self._logs.next(incarnation)
        engine = load_engine(self.kind, incarnation, dict(arguments), self._log_file, timeouts=self._timeouts)
        if self._release_shared is None and isinstance(engine, SharesResources):
            self._release_shared = engine.acquire_shared()
        return engine

    async def stop_engine(self, incarnation: int, grace: float) -> None:
        """End an incarnation's engine, with its whole process tree. A second call does nothing.

        Parameters
        ----------
        incarnation
            The incarnation: neither this one nor an older one can start afterwards.
        grace
            Seconds before SIGKILL.

        Raises
        ------
        EngineError
            A process survived SIGKILL; the message names it.
        """
        self._stopped = max(self._stopped, incarnation)
        if self._engine is not None and incarnation == self._incarnation:
            await self._end(self._engine, incarnation, grace)

    async def close(self) -> None:
        """End the resources that its engines have shared: no other engine will start here."""
        release, self._release_shared = self._release_shared, None
        if release is not None:
            await asyncio.to_thread(release)

    async def _end(self, engine: Engine, incarnation: int, grace: float) -> None:
        self._serving = False
        if self._sentinel is not None:
            self._sentinel.cancel()
            self._sentinel = None
        self._end_pumps()
        self._log.info("host.engine.stopping", incarnation=incarnation, grace=grace)
        try:
            await engine.stop(grace)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._log.exception("host.engine.stop_failed", incarnation=incarnation)
            raise EngineError(in_one_line(error)) from None
        if self._engine is engine:
            self._engine = None
        self._log.info("host.engine.stopped", incarnation=incarnation)

    async def _discard(self, engine: Engine) -> None:
        """End the remaining processes of an engine that did not come up, or that has ended."""
        try:
            await engine.stop(0.0)
        except Exception as error:  # noqa: BLE001 - the end has to be reported; this error is logged
            # It stays this host's engine, so that the next stop tries again, or reports the failure.
            self._log.error("host.engine.left_over", incarnation=self._incarnation, error=str(error))
            return
        if self._engine is engine:
            self._engine = None

    async def _await_death(self, engine: Engine, incarnation: int, monitor: LivenessMonitor) -> None:
        ways = [asyncio.create_task(engine.died()), asyncio.create_task(monitor.stalled())]
        if self._conditions is not None:
            ways.append(asyncio.create_task(self._conditions.dead()))
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            termination = next(way for way in ways if way.done()).result()
        finally:
            for way in ways:
                way.cancel()
        self._serving = False
        self._end_pumps()
        self._put(Terminated(incarnation, termination))
        causes = [str(cause) for cause in termination.causes]
        self._log.warning("host.engine.died", incarnation=incarnation, causes=causes)
        await self._discard(engine)

    # -- commands ---------------------------------------------------------------------------------

    async def submit(self, incarnation: int, commands: Sequence[GenerateCommand]) -> None:
        """Submit commands to the engine; their results leave through the stream."""
        engine = self._engine
        monitor = self._monitor
        if engine is None or monitor is None or not self._serving or incarnation != self._incarnation:
            for command in commands:
                reason = f"incarnation {incarnation} does not serve here"
                self._put(Lost(command.request, command.attempt, reason))
            return
        for command in commands:
            older = self._pumps.get(command.request)
            if older is not None:
                if older.attempt >= command.attempt:
                    continue
                _cancel(older)
            pump = self._pumps[command.request] = _Pump(command.attempt)
            pump.task = asyncio.create_task(self._pump(engine, monitor, command, pump))
            pump.task.add_done_callback(partial(self._pump_ended, command.request, pump))

    async def abort(self, requests: Sequence[tuple[str, int]]) -> None:
        """End requests, given with their attempt; nothing more comes from them."""
        for request, attempt in requests:
            pump = self._pumps.get(request)
            if pump is not None and pump.attempt <= attempt:
                del self._pumps[request]
                _cancel(pump)

    async def flow(self, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading a request's tokens from the engine, for a reader that is slow."""
        pump = self._pumps.get(request)
        if pump is None or pump.attempt != attempt:
            return
        if pump.open is None:
            pump.open = asyncio.Event()
        if is_open:
            pump.open.set()
        else:
            pump.open.clear()

    async def ask(
        self, incarnation: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float
    ) -> Any:
        """Have the engine carry out one of the calls it offers beside requests, within a timeout."""
        engine = self._engine
        if engine is None or not self._serving or incarnation != self._incarnation:
            raise EngineError(f"incarnation {incarnation} does not serve here")
        monitor = self._monitor
        if method in _GOING_ON and monitor is not None:
            monitor.held = False  # before the call: an engine that does not resume has to be noticed
        async with asyncio.timeout(timeout):
            answer = await engine.ask(method, args, kwargs)
        if method in _HOLDING and monitor is not None:
            monitor.held = True
        if method == "handle_fault" and self._conditions is not None and engine is self._engine:
            self._conditions.answered(answer)
        return answer

    async def _pump(
        self, engine: Engine, monitor: LivenessMonitor, command: GenerateCommand, pump: _Pump
    ) -> None:
        request, attempt = command.request, command.attempt
        chunks = engine.generate(command)
        try:
            while (chunk := await monitor.next_of(chunks)) is not None:
                self._put(chunk)
                if chunk.finish_reason is None:
                    await self._batcher.next_tick()
                if pump.open is not None and not pump.open.is_set():
                    await pump.open.wait()
        except RequestRefusedError as refused:
            self._put(Refused(request, attempt, refused.causes))
        except RequestLostError as lost:
            self._put(Lost(request, attempt, lost.reason))
        except EngineGoneError:
            pass  # one Terminated item reports it for all of them
        except Exception as error:  # noqa: BLE001 - its request must not wait forever; the log has the traceback
            self._log.exception("host.request.failed", request=request, attempt=attempt)
            self._put(Lost(request, attempt, in_one_line(error)))
        finally:
            with contextlib.suppress(Exception):
                await chunks.aclose()  # type: ignore[attr-defined]

    def _pump_ended(self, request: str, pump: _Pump, task: asyncio.Task[None]) -> None:
        _retrieve(task)
        if self._pumps.get(request) is pump:
            del self._pumps[request]

    def _end_pumps(self) -> None:
        for pump in self._pumps.values():
            _cancel(pump)
        self._pumps.clear()

    # -- the stream -----------------------------------------------------------------------------

    def stream(self) -> AsyncIterator[list[HostItem]]:
        """Yield all items in order, a list at a time. A newer call ends the older one."""
        return self._batcher.lists()

    # -- helpers --------------------------------------------------------------------------------

    def _stale(self, incarnation: int) -> Termination:
        newest = max(self._incarnation, self._stopped)
        message = f"incarnation {incarnation} was stopped, or a newer one than it was asked for ({newest})"
        return Termination(causes=(Cause("StaleIncarnation", message),), phase="starting")

    def _failed(self, error: BaseException, phase: str) -> Termination:
        return Termination(causes=plain_causes(error), phase=phase, log_file=self._log_file)


def _cancel(pump: _Pump) -> None:
    if pump.task is not None:
        pump.task.cancel()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not report one that was handled."""
    if not task.cancelled():
        task.exception()
