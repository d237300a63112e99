"""Children that are engines: each has a seat, and a seat has a host that outlives its engines.

An engine that died alone is followed by its next incarnation in the same host (same epoch); when the
host has died too, or cannot prove that the engine's processes are gone, a new host takes its place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.protocol.links import HostCallFailedError, HostFactory, HostGoneError, HostLink
from rayvisor._core.protocol.wire import (
    Condition,
    EngineInfo,
    GenerateCommand,
    HostItem,
    Phase,
    ProcessId,
    Suspicion,
    Terminated,
)
from rayvisor._log import get_logger
from rayvisor._runtime.children.host_health import monitor_host
from rayvisor._runtime.children.protocol import StartRefusedError
from rayvisor._runtime.children.recovery import await_instruction, recover
from rayvisor._runtime.children.slots import EngineSlot, host_lost
from rayvisor.errors import ChildUnavailableError, RayvisorError
from rayvisor.faults import Cause, Termination

if TYPE_CHECKING:
    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, EngineStart, Shutdown

__all__ = ["EngineBackend", "EngineReports"]

log = get_logger("rayvisor.engines")

PROOF_SECONDS = 10.0
"""How long the end of a host, and the proof of it, may take."""
ENDLESS_SECONDS = 365.0 * 86400
UNRULED_TRIES = 4
"""How often a host that cannot be reached is asked anew before it counts as lost."""
UNRULED_SECONDS = 2.0
STREAM_TRIES = 7
"""How often in a row a stream that brings nothing is opened anew before the host counts as lost."""
RELISTEN_SECONDS = 0.05
URLS_KEPT = 1000
"""Of how many servers it is known where they were: where they are started again by hand, too."""


class EngineReports(Protocol):
    """Who is told what engines say: the session."""

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Chunks and the like, in order."""

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Some of them may have been lost on the way, though the engine lives."""

    def phase(self, child: str, phase: Phase) -> None:
        """A start has got further."""

    def condition(self, child: str, incarnation: int, event: str, causes: tuple[Cause, ...] = ()) -> None:
        """The engine's condition has changed: ``suspect`` (why), or ``clear``."""

    def unhealthy(self, child: str, condition: Condition, *, again: bool) -> None:
        """The engine has a fault and waits for an instruction; ``again``: it was told of before."""


class EngineBackend:
    """Carries engine children, and gives the pools' fronts their line to them.

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
        open_place: Callable[[], Awaitable[HostFactory]],
        tasks: TaskGroup,
        reports: EngineReports,
        gpus: Callable[[Mapping[str, Any]], float],
    ) -> None:
        self._open_place = open_place
        self._opening = anyio.Lock()
        self._tasks = tasks
        self._reports = reports
        self._gpus = gpus
        self._place: HostFactory | None = None
        self._seats: dict[str, EngineSlot] = {}
        self._urls: dict[str, str] = {}

    async def open(self) -> None:
        """Open the place where hosts live."""
        async with self._opening:
            if self._place is None:
                self._place = await self._open_place()

    def create_incarnation(
        self,
        child: str,
        incarnation: int,
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> EngineIncarnation:
        """Make the carrier of an incarnation."""
        slot = self._seats.setdefault(child, EngineSlot(child))
        slot.predecessor = predecessor
        return EngineIncarnation(self, slot, incarnation, spec)

    def info(self, child: str, incarnation: int) -> EngineInfo | None:
        """What the engine that serves said of itself; None if it is not this incarnation."""
        slot = self._seats.get(child)
        return slot.info if slot is not None and slot.incarnation == incarnation else None

    def predecessor(self, child: str) -> Exit | None:
        """How the incarnation before a child's present one ended; None for the first."""
        slot = self._seats.get(child)
        return None if slot is None else slot.predecessor

    async def ask(
        self,
        child: str,
        incarnation: int,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        timeout: float,
    ) -> Any:
        """Have an engine carry out a call, see `HostLink.ask`.

        Raises
        ------
        ChildUnavailableError
            That incarnation is not there any more.
        """
        slot = self._seats.get(child)
        if slot is None or slot.link is None or slot.incarnation != incarnation:
            raise ChildUnavailableError(child, f"not up as incarnation {incarnation}")
        try:
            return await slot.link.ask(incarnation, method, args, kwargs, timeout)
        except HostGoneError as gone:
            raise ChildUnavailableError(child, str(gone.end.root)) from None

    def epoch(self, child: str) -> int | None:
        """Which host of a child is there; None while there is none."""
        slot = self._seats.get(child)
        return None if slot is None or slot.link is None else slot.epoch

    def processes(self, child: str) -> list[tuple[str, ProcessId]]:
        """Processes of a child's host (where it has one of its own) and of its engine, with their roles."""
        slot = self._seats.get(child)
        if slot is None:
            return []
        # A host in this very process is not the child's to show, and not its user's to kill.
        own = slot.process is not None and slot.process.pid != os.getpid()
        host = [("host", slot.process)] if own and slot.process is not None else []
        return host + [("engine", process) for process in (slot.info.processes if slot.info else ())]

    def url(self, child: str) -> str:
        """Where a server is; empty while it is nowhere."""
        slot = self._seats.get(child)
        return slot.info.url if slot is not None and slot.info is not None else ""

    def was_at(self, child: str, url: str = "") -> str:
        """Where a server was when it was up last, also after its seat has gone; or take note of it."""
        if url:
            self._urls.pop(child, None)
            self._urls[child] = url
            if len(self._urls) > URLS_KEPT:
                del self._urls[next(iter(self._urls))]
        return self._urls.get(child, "")

    async def release(self, child: str) -> None:
        """End the child's host, and give back what was held for it."""
        slot = self._seats.pop(child, None)
        if slot is not None and self._place is not None:
            slot.stop_listening()
            await self._place.end_child(child, PROOF_SECONDS)

    async def close(self) -> None:
        """End all hosts."""
        for slot in self._seats.values():
            slot.stop_listening()
        if self._place is not None:
            await self._place.close()

    # --- the line of a pool's front ------------------------------------------------------------

    async def submit(self, child: str, incarnation: int, orders: Sequence[GenerateCommand]) -> None:
        """Give orders to an engine."""
        await self._line(child, incarnation).submit(incarnation, list(orders))

    async def abort(self, child: str, incarnation: int, attempts: Sequence[tuple[str, int]]) -> None:
        """End attempts in an engine."""
        await self._line(child, incarnation).abort(list(attempts))

    async def flow(self, child: str, incarnation: int, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading an engine's output for a request."""
        await self._line(child, incarnation).flow(request, attempt, is_open=is_open)

    def _line(self, child: str, incarnation: int) -> HostLink:
        slot = self._seats.get(child)
        if slot is None or slot.link is None or slot.incarnation != incarnation or slot.end is not None:
            end = Termination(
                causes=(Cause("EngineGoneError", f"incarnation {incarnation} of {child} has ended"),)
            )
            raise HostGoneError(child, 0 if slot is None else slot.epoch, end)
        return slot.link

    # --- hosts ----------------------------------------------------------------------------------

    async def host(self, slot: EngineSlot, incarnation: int, start: EngineStart, timeout: float) -> HostLink:
        """The seat's host; a new one where there is none.

        Its epoch is the incarnation that it was made for: unique, and never less than before.
        """
        if slot.link is None:
            place = cast("HostFactory", self._place)  # open() came first
            options = start.options
            needs = start.gpu_arguments()
            if options.num_gpus is None and needs is not None:
                options = replace(options, num_gpus=self._gpus(needs))
            slot.epoch = incarnation
            slot.link = await place.create(
                child=slot.child, epoch=incarnation, engine=start.engine, options=options
            )
        if slot.process is None:
            link = slot.link
            slot.process = (await link.ready(timeout)).process
            slot.scope = anyio.CancelScope()
            slot.last_heartbeat = anyio.current_time()
            self._tasks.start_soon(self._attend, slot, link, slot.scope, name=f"host of {slot.child}")
        return slot.link

    async def _attend(self, slot: EngineSlot, link: HostLink, scope: anyio.CancelScope) -> None:
        """Listen to a host until it has ended."""
        with scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, slot, link)
                group.start_soon(monitor_host, slot, link, partial(self._doubt, slot))
                await self._watch(slot, link)
                group.cancel_scope.cancel()

    async def _listen(self, slot: EngineSlot, link: HostLink) -> None:
        unproductive_restarts, why = 0, ""
        while unproductive_restarts < STREAM_TRIES:
            unproductive_restarts += 1
            try:
                async for items in link.stream():
                    unproductive_restarts = 0
                    slot.last_heartbeat = anyio.current_time()
                    self._take(slot, items)
                why = "the host's stream ended while the host lives"
            except HostGoneError as gone:
                if not gone.end.unavailable:
                    return  # the sentinel says how it ended
                why = str(gone)
            except Exception as error:  # noqa: BLE001 - whatever broke it: it is recorded, and listened to anew
                why = f"{type(error).__name__}: {error}"
            log.warning("host.stream.broke", child=slot.child, epoch=slot.epoch, why=why)
            self._reports.items_missing(slot.child, slot.incarnation, why)
            await anyio.sleep(RELISTEN_SECONDS * 2**unproductive_restarts)
        slot.settle(Termination(causes=(Cause("StreamBroken", why),), source="host", lost=True))

    def _take(self, slot: EngineSlot, items: Sequence[HostItem]) -> None:
        rest: list[HostItem] = []
        termination: Termination | None = None
        for item in items:
            if not isinstance(item, Phase | Terminated | Suspicion | Condition):
                rest.append(item)
            elif item.incarnation != slot.incarnation:
                pass  # of one that is gone
            elif isinstance(item, Terminated):
                termination = item.termination
            else:
                self._heed(slot, item)
        if rest:
            self._reports.items(slot.child, slot.incarnation, rest)
        if termination is not None:
            slot.settle(replace(termination, source="engine"))

    def _heed(self, slot: EngineSlot, item: Phase | Suspicion | Condition) -> None:
        if isinstance(item, Phase):
            self._reports.phase(slot.child, item)
        elif isinstance(item, Suspicion):
            self._doubt(slot, "engine", item.causes)
        else:
            again, slot.unhealthy = slot.unhealthy, item.status != "healthy"
            if slot.unhealthy:
                self._reports.unhealthy(slot.child, item, again=again)

    def _doubt(self, slot: EngineSlot, by: str, causes: tuple[Cause, ...]) -> None:
        """Somebody doubts that the incarnation gets on, or (without causes) does not any more."""
        suspected = bool(slot.doubts)
        slot.doubts.pop(by, None)
        if causes:
            slot.doubts[by] = causes
        if bool(slot.doubts) != suspected:
            event = "suspect" if slot.doubts else "clear"
            self._reports.condition(slot.child, slot.incarnation, event, causes)

    def others_ail(self, child: str) -> bool:
        """Whether another member of the child's group has a fault still."""
        group, _, _ = child.rpartition("/")
        return any(
            slot.unhealthy
            for path, slot in self._seats.items()
            if path != child and path.rpartition("/")[0] == group
        )

    async def _watch(self, slot: EngineSlot, link: HostLink) -> None:
        tries = 0
        while True:
            end = await link.ended()
            tries += 1
            if not end.unavailable or tries > UNRULED_TRIES:
                break
            # Nobody has ruled: ask the same host anew, a bounded number of times; it is never made twice.
            self._doubt(slot, "ray", end.causes or (end.root,))
            try:
                await link.ready(UNRULED_SECONDS)
            except (HostGoneError, HostCallFailedError, TimeoutError):
                await anyio.sleep(UNRULED_SECONDS / UNRULED_TRIES * tries)
            else:
                tries = 0
                self._doubt(slot, "ray", ())
        slot.settle(host_lost(end))


class EngineIncarnation:
    """One incarnation of an engine."""

    def __init__(self, backend: EngineBackend, slot: EngineSlot, incarnation: int, spec: ChildSpec) -> None:
        self._backend = backend
        self._seat = slot
        self._incarnation = incarnation
        self._start = cast("EngineStart", spec.start)
        self._timeout = spec.start_timeout
        self._recovery_timeout = spec.recovery_timeout
        self._link: HostLink | None = None

    async def start(self) -> None:
        """Have the engine started in the seat's host."""
        answer: EngineInfo | Termination | None = None
        slot = self._seat
        slot.begin(self._incarnation, self._start.limits, self._timeout)
        try:
            try:
                link = await self._backend.host(slot, self._incarnation, self._start, self._timeout)
            finally:
                self._link = slot.link  # it may have been made though it did not come up
            # That the host is up is progress: the engine has all of its deadline.
            with anyio.CancelScope() as slot.starting:
                answer = await link.ensure_started(
                    self._incarnation,
                    self._start.arguments_after(self._backend.was_at(slot.child)),
                    self._timeout,
                    self._start.limits,
                )
            if slot.starting.cancelled_caught:
                raise StartRefusedError(await slot.ended())
        except HostGoneError as gone:
            raise StartRefusedError(host_lost(gone.end)) from None
        except HostCallFailedError as failed:
            raise StartRefusedError(
                Termination(causes=failed.causes, traceback=failed.traceback, source="host", phase="starting")
            ) from None
        except (RayvisorError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            name = "StartTimeout" if late else type(error).__name__
            why = str(error) or f"not up within start_timeout={self._timeout:g} s"
            raise StartRefusedError(
                Termination(causes=(Cause(name, why),), source="ray", overdue=late, phase="starting")
            ) from None
        if isinstance(answer, Termination):
            raise StartRefusedError(replace(answer, source="engine"))
        slot.info = answer
        if answer is not None and answer.url:
            self._backend.was_at(slot.child, answer.url)

    async def act(self, action: str) -> None:
        """Have the engine recover in place, or (``await``) wait until an operator has had it recover."""
        slot, timeout = self._seat, self._recovery_timeout
        others_ail = partial(self._backend.others_ail, slot.child)
        if action == "await":
            await await_instruction(slot, self._incarnation, timeout, others_ail)
        else:
            await recover(slot, self._incarnation, action, timeout, others_ail)

    async def ended(self) -> Termination:
        """Wait until the engine, or its host, has ended."""
        return await self._seat.ended()

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - engines are not told why
        """End the engine in its time, then its host."""
        link = self._link
        if link is None:
            return True
        if shutdown.seconds and not self._seat.unresponsive:
            grace = ENDLESS_SECONDS if math.isinf(shutdown.seconds) else shutdown.seconds
            try:
                await link.stop_engine(self._incarnation, grace)
            except (HostGoneError, HostCallFailedError, TimeoutError) as error:
                log.warning(
                    "engine.stop.failed",
                    child=self._seat.child,
                    incarnation=self._incarnation,
                    error=str(error),
                )
        if self._seat.incarnation != self._incarnation and self._seat.link is link:
            # Its host serves a newer incarnation, whose start has ended this one.
            return await self._engine_gone(link)
        return await self._host_gone(link)

    async def clean(self) -> bool:
        """Have the host end what an engine that died left behind; without an answer, end the host too."""
        link = self._link
        if link is None:
            return True
        slot = self._seat
        answered = slot.link is not link or (slot.process is not None and not slot.unresponsive)
        if answered and await self._engine_gone(link):
            return True
        return await self._host_gone(link)

    async def _engine_gone(self, link: HostLink) -> bool:
        try:
            with anyio.fail_after(PROOF_SECONDS):
                await link.stop_engine(self._incarnation, 0.0)
        except (HostGoneError, HostCallFailedError, TimeoutError):
            return False
        return True

    async def _host_gone(self, link: HostLink) -> bool:
        self._seat.leave(link)
        report = await link.end(PROOF_SECONDS)
        return report.verified
