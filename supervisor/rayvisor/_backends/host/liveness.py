"""Monitors a serving engine from inside its host.

`StallWatch` decides; this module collects its observations. Work that counts is a command for whose next
tokens the host waits: not one whose reader is slow, and not one that waits for the stream to leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable

from rayvisor._backends.host.engine import Engine, EngineError, ExternalLoad, Report, ServesExternally
from rayvisor._backends.process.observation import Sampler, describe, stopped_cause
from rayvisor._core.health.stall import BUSY_SHARE, HealthAction, Look, StallWatch, StartClock
from rayvisor._core.protocol.causes import Causes
from rayvisor._core.protocol.wire import (
    Chunk,
    EngineInfo,
    GenerateCommand,
    ProcessObservation,
    Suspicion,
    Worked,
)
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs import StallLimits
from rayvisor.timeouts import DEFAULT_TIMEOUTS

__all__ = ["LivenessMonitor", "StartOverdueError", "start_in_time"]

log = get_logger("rayvisor.host")

_PROBE = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
_START_LOOKS = 10
_NOBODY = ExternalLoad(0, -math.inf, -math.inf)
_START_SHARE = 0.25
"""A starting process that uses this share of a core is making progress."""


class LivenessMonitor:
    """Watches one incarnation of an engine while it serves.

    Parameters
    ----------
    engine, incarnation
        The engine.
    limits
        How long it may make no progress.
    tell
        Sends an item to the driver.
    log_file
        The engine's log, named in the termination.
    """

    def __init__(
        self,
        engine: Engine,
        incarnation: int,
        limits: StallLimits,
        tell: Callable[[Suspicion | Worked], object],
        log_file: str,
    ) -> None:
        self._engine = engine
        self._incarnation = incarnation
        self._limits = limits
        self._tell = tell
        self._log_file = log_file
        self._log = log.bind(incarnation=incarnation)
        self._sampler = Sampler()
        self._waiting = 0
        self._since = -math.inf
        self._progressed = -math.inf
        self._probe: asyncio.Task[None] | None = None
        self._probes = 0
        self._external = _NOBODY
        self._worked = False
        self.resting = False
        """Whether the engine waits for an instruction: no progress is expected then."""
        self.held = False
        """Whether it was asked to pause its requests, or to sleep: as above."""

    async def next_of(self, chunks: AsyncIterator[Chunk]) -> Chunk | None:
        """Wait for the next chunk of a command; None at its end. Tokens are a sign of life."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += 1
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return None
        finally:
            self._waiting -= 1
        if chunk.token_ids:
            self._progressed = time.monotonic()
        return chunk

    async def stalled(self) -> Termination:
        """Wait until the engine has stalled, and return its termination."""
        try:
            return await self._watch()
        except Exception:  # noqa: BLE001 - it is logged with its traceback
            # Its end and its host's silence are still seen: better watched in part than ended for this.
            self._log.exception("host.monitor.failed")
            never: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            if self._probe is not None:
                self._probe.cancel()

    async def _watch(self) -> Termination:
        now = time.monotonic()
        watch = StallWatch(self._limits, now)
        self._sampler.sample(self._engine.processes(), now)
        while True:
            await asyncio.sleep(max(0.0, watch.next_look(now) - time.monotonic()))
            now = time.monotonic()
            sights = self._sampler.sample(self._engine.processes(), now)
            match watch.look(self._see(now, sights)):
                case HealthAction.PROBE:
                    self._begin_probe()
                case HealthAction.SUSPECT:
                    causes = self._causes("EngineSuspect", watch, sights)
                    self._log.warning("host.engine.suspect", causes=[str(cause) for cause in causes])
                    self._tell(Suspicion(self._incarnation, causes))
                case HealthAction.CLEAR:
                    self._log.info("host.engine.clear")
                    self._tell(Suspicion(self._incarnation, ()))
                case HealthAction.STALLED:
                    return self._died(watch, sights)
                case HealthAction.NOTHING:
                    pass

    def _see(self, now: float, sights: list[ProcessObservation]) -> Look:
        if isinstance(self._engine, ServesExternally):
            self._external = self._engine.external_load()
            if self._external.worked and not self._worked:
                self._worked = True
                self._tell(Worked(self._incarnation))
        external = self._external
        # A probe that waits here is counted by the server as well.
        both = bool(self._waiting and external.waiting)
        return Look(
            now,
            max(self._progressed, external.progressed),
            max(self._waiting, external.waiting),
            min(self._since, external.since) if both else self._since if self._waiting else external.since,
            max((sight.load for sight in sights), default=0.0),
            any(sight.stopped for sight in sights),
            self.resting or self.held,
        )

    def _begin_probe(self) -> None:
        if self._probe is None or self._probe.done():
            self._probes += 1
            self._log.info("host.engine.probed", number=self._probes)
            self._probe = asyncio.create_task(self._ask_for_one_token(self._probes))

    async def _ask_for_one_token(self, number: int) -> None:
        """Send a probe along the path of all work. Its tokens never leave the host."""
        command = GenerateCommand(f"probe-{self._incarnation}", number, (0,), _PROBE)
        chunks = self._engine.generate(command)
        try:
            while await self.next_of(chunks) is not None:
                pass
        except EngineError as error:
            # An engine's end is reported elsewhere; one that refuses has answered, but shown no progress.
            self._log.info("host.probe.failed", number=number, error=str(error))
        finally:
            with contextlib.suppress(Exception):
                await chunks.aclose()  # type: ignore[attr-defined]

    def _causes(self, name: str, watch: StallWatch, sights: list[ProcessObservation]) -> Causes:
        waiting = max(self._waiting, self._external.waiting)
        requests = "1 request" if waiting == 1 else f"{waiting} requests"
        if self._probe is not None and not self._probe.done():
            others = waiting - 1
            requests = f"{others} requests and a probe" if others else "a probe"
        message = f"no token for {watch.silent:.1f} s with {requests} queued"
        if self._external.unanswered:
            message = f"{self._external.unanswered} for {watch.silent:.1f} s"
        stopped = stopped_cause(sights)
        if stopped is not None:
            return Cause(name, message), stopped
        return (Cause(name, f"{message}; {describe(sights, BUSY_SHARE)}"),)

    def _died(self, watch: StallWatch, sights: list[ProcessObservation]) -> Termination:
        causes = self._causes("EngineStalled", watch, sights)
        return Termination(causes=causes, phase="serving", log_file=self._log_file)


class StartOverdueError(TimeoutError):
    """A start timed out.

    Parameters
    ----------
    message
        How long it took.
    held_by
        The visible reason, as a cause: a process that is stopped; None if there is none.
    """

    def __init__(self, message: str, held_by: Cause | None) -> None:
        super().__init__(message)
        self.held_by = held_by


async def start_in_time(
    engine: Engine,
    report: Report,
    timeout: float,
    longest: float,
    poll: float = DEFAULT_TIMEOUTS.host.start_poll,
) -> EngineInfo:
    """Start an engine; the timeout counts from its last progress.

    Progress is a phase or a detail that was not reported before, and processor time of its processes.

    Parameters
    ----------
    engine
        An engine that has not been started.
    report
        Called with each phase that the engine reports.
    timeout
        Seconds without progress.
    longest
        Seconds for the whole start.
    poll
        The most seconds between two looks at the processes; at most a tenth of ``timeout`` is used.

    Raises
    ------
    StartOverdueError
        It timed out; the message says after how long.
    EngineStartFailedError
        As raised by the engine's ``start``.
    """
    clock = StartClock(timeout, longest, time.monotonic())
    watch = _StartWatch(engine, clock, min(poll, timeout / _START_LOOKS))
    told: set[tuple[str, str]] = set()

    def heard(phase: str, detail: str) -> None:
        if (phase, detail) not in told:
            told.add((phase, detail))
            watch.progressed()
        report(phase, detail)

    try:
        async with watch.timeout:
            watching = asyncio.create_task(watch.run())
            try:
                return await engine.start(heard)
            finally:
                watching.cancel()
    except TimeoutError:
        if not watch.timeout.expired():
            raise
        took = time.monotonic() - watch.began
        after = f"{took:.1f} s" + (f", the last {timeout:g} s without progress" if took < longest else "")
        raise StartOverdueError(f"the engine was not up after {after}", watch.held_by) from None


class _StartWatch:
    """Postpones the deadline of a start while its processes make progress, and sees which are stopped."""

    def __init__(self, engine: Engine, clock: StartClock, pause: float) -> None:
        self._engine = engine
        self._clock = clock
        self._pause = pause
        self._loop = asyncio.get_running_loop()
        self.began = time.monotonic()
        self.timeout = asyncio.timeout_at(self._loop.time() + clock.due - self.began)
        self.held_by: Cause | None = None

    def progressed(self) -> None:
        """Postpone the deadline: the start has made progress."""
        now = time.monotonic()
        if not self.timeout.expired():
            self.timeout.reschedule(self._loop.time() + self._clock.progressed(now) - now)

    async def run(self) -> None:
        """Observe the processes repeatedly, until cancelled."""
        sampler = Sampler()
        while True:
            sights = sampler.sample(self._engine.processes(), time.monotonic())
            if self._loop.time() < (self.timeout.when() or 0.0):  # later ones are being killed
                self.held_by = stopped_cause(sights)
            if any(sight.load >= _START_SHARE for sight in sights):
                self.progressed()
            await asyncio.sleep(self._pause)
