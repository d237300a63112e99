"""Children that are engines: each has a seat, and a seat has a host that outlives its engines.

An engine that died alone is followed by its next incarnation in the same host (same epoch); when the
host has died too, or cannot prove that the engine's processes are gone, a new host takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup

from rayvisor._engine.link import GoneReport, HostCallFailed, HostEnd, HostGone, HostLink, HostPlace
from rayvisor._engine.wire import Died, EngineInfo, HostItem, Order, Phase, ProcessId
from rayvisor._runtime.carriers import StartRefused
from rayvisor.children import EngineStart
from rayvisor.classify import Ending
from rayvisor.errors import RayvisorError
from rayvisor.faults import Cause

if TYPE_CHECKING:
    from rayvisor._core.exits import Exit
    from rayvisor.specs import ChildSpec, Shutdown

__all__ = ["EngineBackend", "EngineReports"]

log = structlog.get_logger("rayvisor.engines")

PROOF_SECONDS = 10.0
"""How long the end of a host, and the proof of it, may take."""
UNRULED_TRIES = 4
"""How often a host that cannot be reached is asked anew before it counts as lost."""
UNRULED_SECONDS = 2.0


class EngineReports(Protocol):
    """Who is told what engines say: the runtime."""

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Chunks and the like, in order."""

    def phase(self, child: str, phase: Phase) -> None:
        """A start has got further."""

    def condition(self, child: str, incarnation: int, event: str) -> None:
        """The engine's condition has changed: ``suspect`` or ``clear``."""


class _Seat:
    """What one engine child has across its incarnations."""

    __slots__ = ("child", "end", "epoch", "host", "incarnation", "info", "link", "scope", "settled")

    def __init__(self, child: str) -> None:
        self.child = child
        self.epoch = 0
        self.incarnation = 0
        self.link: HostLink | None = None
        self.host: ProcessId | None = None
        self.scope: anyio.CancelScope | None = None
        self.info: EngineInfo | None = None
        # How the present incarnation ended by itself, once it has.
        self.end: Ending | None = None
        self.settled = anyio.Event()

    def settle(self, ending: Ending) -> None:
        if self.end is None:
            self.end = ending
            self.settled.set()

    def begin(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.info = None
        self.end = None
        self.settled = anyio.Event()


class EngineBackend:
    """Carries engine children, and gives the pool's front its line to them.

    Parameters
    ----------
    open_place
        Makes the place where hosts live.
    tasks
        Owner of what listens to the hosts.
    reports
        Who is told.
    gpus
        How many GPUs an engine with these arguments needs, where its child does not say.
    """

    def __init__(
        self,
        open_place: Callable[[], Awaitable[HostPlace]],
        tasks: TaskGroup,
        reports: EngineReports,
        gpus: Callable[[Mapping[str, Any]], float],
    ) -> None:
        self._open_place = open_place
        self._tasks = tasks
        self._reports = reports
        self._gpus = gpus
        self._place: HostPlace | None = None
        self._seats: dict[str, _Seat] = {}

    async def open(self) -> None:
        self._place = await self._open_place()

    def carry(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None  # noqa: ARG002 - the protocol's
    ) -> EngineCarrier:
        assert isinstance(spec.start, EngineStart)
        seat = self._seats.setdefault(child, _Seat(child))
        return EngineCarrier(self, seat, incarnation, spec.start, spec.start_deadline)

    def info(self, child: str, incarnation: int) -> EngineInfo | None:
        """What the engine that serves said of itself; None if it is not this incarnation."""
        seat = self._seats.get(child)
        return seat.info if seat is not None and seat.incarnation == incarnation else None

    def processes(self, child: str) -> list[tuple[str, ProcessId]]:
        """Processes of a child's host and of its engine, with their roles."""
        seat = self._seats.get(child)
        if seat is None:
            return []
        host = [] if seat.host is None else [("host", seat.host)]
        return host + [("engine", process) for process in (seat.info.processes if seat.info else ())]

    async def release(self, child: str) -> None:
        seat = self._seats.pop(child, None)
        if seat is not None and self._place is not None:
            self._hush(seat)
            await self._place.end_child(child, PROOF_SECONDS)

    async def close(self) -> None:
        for seat in self._seats.values():
            self._hush(seat)
        if self._place is not None:
            await self._place.close()

    # --- the line of a pool's front ------------------------------------------------------------

    async def submit(self, child: str, incarnation: int, orders: Sequence[Order]) -> None:
        """Give orders to an engine."""
        await self._line(child, incarnation).submit(incarnation, list(orders))

    async def abort(self, child: str, incarnation: int, pairs: Sequence[tuple[str, int]]) -> None:
        """End orders in an engine."""
        await self._line(child, incarnation).abort(list(pairs))

    async def flow(self, child: str, incarnation: int, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading an engine's output for a request."""
        await self._line(child, incarnation).flow(request, attempt, is_open=is_open)

    def _line(self, child: str, incarnation: int) -> HostLink:
        seat = self._seats.get(child)
        if seat is None or seat.link is None or seat.incarnation != incarnation or seat.end is not None:
            raise HostGone(
                child, 0 if seat is None else seat.epoch, HostEnd(causes=(Cause("EngineGone", f"incarnation {incarnation}"),))
            )
        return seat.link

    # --- hosts ----------------------------------------------------------------------------------

    async def host(self, seat: _Seat, start: EngineStart, deadline: float) -> HostLink:
        """The seat's host; a new one, with the next epoch, where there is none."""
        assert self._place is not None  # open() came first
        if seat.link is None:
            seat.epoch += 1
            options = start.options
            if options.num_gpus is None and start.engine == "vllm":
                options = replace(options, num_gpus=self._gpus(start.arguments))
            seat.link = link = await self._place.create(
                child=seat.child, epoch=seat.epoch, engine=start.engine, options=options
            )
            seat.host = (await link.ready(deadline)).process
            seat.scope = anyio.CancelScope()
            self._tasks.start_soon(self._attend, seat, link, seat.scope, name=f"host of {seat.child}")
        return seat.link

    async def leave(self, seat: _Seat) -> GoneReport:
        """End the seat's host with everything below it."""
        link, seat.link, seat.host = seat.link, None, None
        self._hush(seat)
        if link is None:
            return GoneReport((), (), verified=True)
        return await link.end(PROOF_SECONDS)

    def _hush(self, seat: _Seat) -> None:
        if seat.scope is not None:
            seat.scope.cancel()
            seat.scope = None

    async def _attend(self, seat: _Seat, link: HostLink, scope: anyio.CancelScope) -> None:
        """Listen to a host until it has ended."""
        with scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, seat, link)
                await self._watch(seat, link)
                group.cancel_scope.cancel()

    async def _listen(self, seat: _Seat, link: HostLink) -> None:
        while True:
            try:
                async for items in link.stream():
                    self._take(seat, items)
            except HostGone:
                return  # the sentinel says how it ended
            except (HostCallFailed, TimeoutError) as error:
                log.warning("host.stream.broke", child=seat.child, epoch=seat.epoch, error=str(error))
                seat.settle(Ending(causes=(Cause("StreamBroken", str(error)),), source="host"))
                return
            if seat.link is not link:
                return
            # A stream that ends while its host lives has been replaced, or lost: listen anew.
            await anyio.sleep(0.05)

    def _take(self, seat: _Seat, items: Sequence[HostItem]) -> None:
        rest: list[HostItem] = []
        died: Died | None = None
        for item in items:
            if isinstance(item, Phase):
                if item.incarnation == seat.incarnation:
                    self._reports.phase(seat.child, item)
            elif isinstance(item, Died):
                if item.incarnation == seat.incarnation:
                    died = item
            else:
                rest.append(item)
        if rest:
            self._reports.items(seat.child, seat.incarnation, rest)
        if died is not None:
            seat.settle(ending_of_engine(died))

    async def _watch(self, seat: _Seat, link: HostLink) -> None:
        tries = 0
        while True:
            end = await link.ended()
            if not end.unavailable:
                break
            # Nobody has ruled: ask the same host anew, a bounded number of times; it is never made twice.
            tries += 1
            self._reports.condition(seat.child, seat.incarnation, "suspect")
            if tries > UNRULED_TRIES:
                break
            try:
                await link.ready(UNRULED_SECONDS)
            except (HostGone, TimeoutError):
                await anyio.sleep(UNRULED_SECONDS / 4 * tries)
            else:
                self._reports.condition(seat.child, seat.incarnation, "clear")
        seat.settle(ending_of_host(end))


class EngineCarrier:
    """One incarnation of an engine."""

    def __init__(
        self, backend: EngineBackend, seat: _Seat, incarnation: int, start: EngineStart, deadline: float
    ) -> None:
        self._backend = backend
        self._seat = seat
        self._incarnation = incarnation
        self._start = start
        self._deadline = deadline

    async def start(self) -> None:
        seat = self._seat
        seat.begin(self._incarnation)
        try:
            link = await self._backend.host(seat, self._start, self._deadline)
            answer = await link.ensure_started(self._incarnation, self._start.arguments, self._deadline)
        except HostGone as gone:
            raise StartRefused(ending_of_host(gone.end)) from None
        except HostCallFailed as failed:
            raise StartRefused(
                Ending(causes=failed.causes, traceback=failed.traceback, source="host", doing="starting")
            ) from None
        except RayvisorError as error:
            raise StartRefused(Ending(causes=(Cause(type(error).__name__, str(error)),), doing="starting")) from None
        except TimeoutError as timeout:
            raise StartRefused(
                Ending(
                    causes=(Cause("StartDeadlineExceeded", str(timeout) or f"not up within {self._deadline:g} s"),),
                    overdue=True,
                    doing="starting",
                )
            ) from None
        if isinstance(answer, Died):
            raise StartRefused(ending_of_engine(answer))
        seat.info = answer

    async def ended(self) -> Ending:
        seat = self._seat
        await seat.settled.wait()
        assert seat.end is not None  # settle() sets both
        return seat.end

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - engines are not told why
        seat = self._seat
        if seat.link is not None and shutdown.seconds:
            grace = 3600.0 if math.isinf(shutdown.seconds) else shutdown.seconds
            try:
                await seat.link.stop_engine(self._incarnation, grace)
            except (HostGone, HostCallFailed, TimeoutError) as error:
                log.warning("engine.stop.failed", child=seat.child, incarnation=self._incarnation, error=str(error))
        report = await self._backend.leave(seat)
        return report.verified

    async def clean(self) -> bool:
        seat = self._seat
        if seat.link is None:
            return True
        try:
            # An engine that died leaves its host alive; the host ends what is left and answers for it.
            with anyio.fail_after(PROOF_SECONDS):
                await seat.link.stop_engine(self._incarnation, 0.0)
        except (HostGone, HostCallFailed, TimeoutError):
            report = await self._backend.leave(seat)
            return report.verified
        return True


def ending_of_engine(died: Died) -> Ending:
    """What a host says of its engine's end."""
    return Ending(
        causes=tuple(Cause(*cause) for cause in died.causes),
        source="engine",
        traceback=died.traceback,
        exit_code=died.exit_code,
        signal=died.signal,
        doing=died.doing,
        log_file=died.log_file,
    )


def ending_of_host(end: HostEnd) -> Ending:
    """What Ray says of a host's end."""
    return Ending(
        causes=end.causes,
        source="ray",
        traceback=end.traceback,
        exit_code=end.exit_code,
        signal=end.signal,
        # A host that leaves by itself leaves its child behind: for the engine that is no intended end.
        intended=False,
        unavailable=False,
        out_of_memory=end.out_of_memory,
        preempted=end.preempted or end.node_died,
        node=end.node,
        log_file=end.log_file,
    )
