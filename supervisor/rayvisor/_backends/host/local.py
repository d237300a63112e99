"""Hosts in this process: the same link as to hosts on Ray, for tests and fast runs.

The engine is real, with processes of its own; only its host is not a process. `LocalHost.crash` simulates a
SIGKILL of the host: its engine's processes are killed, and every call ends as it would have.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar

import anyio

from rayvisor._backends.host.engine import EngineError, EngineStartFailedError
from rayvisor._backends.host.host import EngineHost
from rayvisor._backends.process.killing import end_processes
from rayvisor._backends.process.observation import observe
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.links import (
    CleanupReport,
    HostCallFailedError,
    HostGoneError,
    HostView,
    merge_reports,
)
from rayvisor._core.protocol.wire import (
    EngineInfo,
    GenerateCommand,
    HostDescription,
    HostItem,
    ProcessId,
)
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs import ActorOptions, StallLimits
from rayvisor.specs.limits import PATIENT
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["LocalHost", "LocalHostFactory"]

T = TypeVar("T")
log = get_logger("rayvisor.process")


class LocalHost:
    """The link to a host in this process; created by `LocalHostFactory.create`."""

    def __init__(
        self,
        factory: LocalHostFactory,
        child: str,
        epoch: int,
        engine: str,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self.child = child
        self.epoch = epoch
        self._factory = factory
        self._host = EngineHost(child, epoch, engine, timeouts=timeouts)
        self._timeouts = timeouts.host
        self._process_timeouts = timeouts.process
        self._newest = 0
        self._processes: tuple[ProcessId, ...] = ()
        self._end: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()

    async def ready(self, timeout: float) -> HostDescription:
        """Return the host's description of itself."""
        return await self._call("describe", self._host.describe(), timeout)

    async def ensure_started(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        timeout: float,
        limits: StallLimits = PATIENT,
    ) -> EngineInfo | Termination:
        """Start an engine, see `HostLink.ensure_started`."""
        self._newest = max(self._newest, incarnation)
        try:
            info = await self._call(
                "ensure_started",
                self._host.ensure_started(incarnation, dict(arguments), timeout, limits),
                limits.longest(timeout) + self._timeouts.answer_slack,
            )
        except EngineStartFailedError as failed:
            return failed.termination
        self._processes = info.processes
        return info

    async def stop_engine(self, incarnation: int, grace: float) -> None:
        """End the engine, see `HostLink.stop_engine`."""
        await self._call(
            "stop_engine", self._host.stop_engine(incarnation, grace), grace + self._timeouts.answer
        )

    async def submit(self, incarnation: int, commands: Sequence[GenerateCommand]) -> None:
        """Submit commands to the engine."""
        await self._call("submit", self._host.submit(incarnation, commands), self._timeouts.answer)

    async def abort(self, requests: Sequence[tuple[str, int]]) -> None:
        """End requests in the engine."""
        await self._call("abort", self._host.abort(requests), self._timeouts.answer)

    async def flow(self, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading a request's output."""
        await self._call("flow", self._host.flow(request, attempt, is_open=is_open), self._timeouts.answer)

    async def ask(
        self, incarnation: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float
    ) -> Any:
        """Have the engine carry out a call, see `HostLink.ask`."""
        asked = self._host.ask(incarnation, method, args, kwargs, timeout)
        return await self._call(method, asked, timeout + self._timeouts.answer_slack)

    async def stream(self) -> AsyncIterator[list[HostItem]]:
        """Yield everything that the host reports; raises HostGoneError when the host ends."""
        self._check()
        source = aiter(self._host.stream())
        item: asyncio.Future[list[HostItem]] | None = None
        try:
            while True:
                item = asyncio.ensure_future(anext(source))
                await asyncio.wait((item, self._end), return_when=asyncio.FIRST_COMPLETED)
                self._check()
                try:
                    items = await item
                except StopAsyncIteration:
                    return
                yield items
        finally:
            if item is not None:
                item.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await item

    async def view(self, timeout: float) -> HostView:
        """Observe the engine's processes; the host itself is this process, which runs."""
        del timeout
        return HostView(tuple(await observe(self._processes, load=self._process_timeouts.load)))

    async def ended(self) -> Termination:
        """Wait until the host has ended."""
        return await asyncio.shield(self._end)

    async def end(self, timeout: float) -> CleanupReport:
        """End the engine's processes and the host with them, and return the proof."""
        cause = Cause("HostKilled", "the host was asked to end")
        return await self._finish(Termination(causes=(cause,), intended=True), timeout)

    async def crash(self) -> None:
        """Simulate a SIGKILL of the host process."""
        cause = Cause("HostKilled", "the host's process was ended by SIGKILL (simulated)")
        await self._finish(Termination(causes=(cause,), signal=9), self._timeouts.answer)

    async def _finish(self, end: Termination, timeout: float) -> CleanupReport:
        known = self._processes
        if not self._end.done():
            self._end.set_result(end)
        report = await end_processes(known, key=None, timeout=timeout, timeouts=self._process_timeouts)
        try:
            with anyio.fail_after(timeout):
                await self._host.stop_engine(self._newest, 0.0)
        except (EngineError, TimeoutError) as error:
            log.warning("host.engine.left_over", child=self.child, epoch=self.epoch, error=str(error))
            report = report._replace(verified=False)
        await self._host.close()
        if report.verified:
            self._factory.forget(self)
        return report

    def _check(self) -> None:
        if self._end.done():
            raise HostGoneError(self.child, self.epoch, self._end.result())

    async def _call(self, name: str, call: Coroutine[Any, Any, T], timeout: float) -> T:
        what = f"{name} of the host of {self.child} (epoch {self.epoch})"
        task = asyncio.ensure_future(call)
        try:
            if not self._end.done():
                await asyncio.wait((task, self._end), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        self._check()
        if not task.done():
            raise TimeoutError(f"{what} was not answered within {timeout:g} s")
        try:
            return task.result()
        except EngineStartFailedError:
            raise
        except Exception as error:
            raise HostCallFailedError(what, plain_causes(error), "") from error


class LocalHostFactory:
    """Creates hosts in this process. Use as a context manager, or call `close`.

    Parameters
    ----------
    timeouts
        Timeouts and intervals of the hosts and of their engines.
    """

    def __init__(self, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._timeouts = timeouts
        self._hosts: dict[tuple[str, int], LocalHost] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def create(self, *, child: str, epoch: int, engine: str, options: ActorOptions) -> LocalHost:
        """Create a host, see `HostFactory.create`. Options have no meaning here: nothing is scheduled."""
        if (child, epoch) in self._hosts:
            raise ValueError(f"epoch={epoch}: {child!r} has a host of this epoch already")
        log.debug("host.created", child=child, epoch=epoch, ignored=options)
        host = self._hosts[child, epoch] = LocalHost(self, child, epoch, engine, timeouts=self._timeouts)
        return host

    async def end_child(self, child: str, timeout: float) -> CleanupReport:
        """End every remaining host of a child."""
        return await self._end_all([host for host in self._hosts.values() if host.child == child], timeout)

    async def close(self, timeout: float = 30.0) -> None:
        """End every remaining host."""
        await self._end_all(list(self._hosts.values()), timeout)

    def forget(self, host: LocalHost) -> None:
        """Drop a host that has ended."""
        self._hosts.pop((host.child, host.epoch), None)

    async def _end_all(self, hosts: Sequence[LocalHost], timeout: float) -> CleanupReport:
        reports = await asyncio.gather(*(host.end(timeout) for host in hosts))
        return merge_reports(reports)
