"""Children that are engines: each has a slot, and a slot has a host that outlives its engines.

If only the engine has ended, its next incarnation starts in the same host (same epoch). If the host has ended
as well, or cannot prove that the engine's processes are gone, a new host is created.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.paths import split
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
from rayvisor._runtime.children.group_health import GroupHealth
from rayvisor._runtime.children.host_health import monitor_host
from rayvisor._runtime.children.protocol import StartRefusedError
from rayvisor._runtime.children.recovery import await_instruction, recover
from rayvisor._runtime.children.slots import EngineSlot, host_lost
from rayvisor.errors import ChildUnavailableError, EngineCallError, RayvisorError
from rayvisor.faults import Cause, Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, EngineStart, Shutdown

__all__ = ["EngineBackend", "EngineReports"]

log = get_logger("rayvisor.engines")

ENDLESS_SECONDS = 365.0 * 86400
UNAVAILABLE_TRIES = 4
"""How often an unavailable host is called again before it counts as lost."""
STREAM_TRIES = 7
"""How often in a row a stream without items is opened again before the host counts as lost."""
URLS_KEPT = 1000
"""For how many servers the last URL is kept: they return to it, also when they are started by hand."""


class EngineReports(Protocol):
    """Receives the reports of engines; implemented by the session."""

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Take chunks and other items of requests, in order."""

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Note that some items may have been lost on the way, though the engine is alive."""

    def phase(self, child: str, phase: Phase) -> None:
        """Note the progress of a start."""

    def condition(self, child: str, incarnation: int, event: str, causes: tuple[Cause, ...] = ()) -> None:
        """Note a change of the engine's condition: ``suspect``, with the causes, or ``clear``."""

    def unhealthy(self, child: str, condition: Condition, *, again: bool) -> None:
        """Note that the engine has a fault and waits for an instruction; ``again`` if that is a reminder."""


class EngineBackend:
    """Runs engine children, and connects the request schedulers of the pools to them.

    Parameters
    ----------
    open_factory
        Creates the factory of the hosts.
    tasks
        Owner of the tasks that listen to the hosts.
    reports
        Receives the reports of the engines.
    gpus
        Returns how many GPUs an engine with these arguments needs, where its child does not say.
    timeouts
        Timeouts of what its incarnations do.
    """

    def __init__(
        self,
        open_factory: Callable[[], Awaitable[HostFactory]],
        tasks: TaskGroup,
        reports: EngineReports,
        gpus: Callable[[Mapping[str, Any]], float],
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self.timeouts = timeouts
        self._open_factory = open_factory
        self._opening = anyio.Lock()
        self._tasks = tasks
        self._reports = reports
        self._gpus = gpus
        self._factory: HostFactory | None = None
        self._slots: dict[str, EngineSlot] = {}
        # By path of the supervisor; a group lasts as long as one of its slots.
        self._groups: WeakValueDictionary[str, GroupHealth] = WeakValueDictionary()
        self._urls: dict[str, str] = {}

    async def open(self) -> None:
        """Open the factory of the hosts, if it is not open."""
        async with self._opening:
            if self._factory is None:
                self._factory = await self._open_factory()

    def create_incarnation(
        self,
        child: str,
        incarnation: int,
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> EngineIncarnation:
        """Create the child incarnation object of an incarnation."""
        slot = self._slots.get(child)
        if slot is None:
            group = self._groups.setdefault(split(child)[0], GroupHealth())
            slot = self._slots[child] = EngineSlot(child, group)
        slot.predecessor = predecessor
        return EngineIncarnation(self, slot, incarnation, spec)

    def info(self, child: str, incarnation: int) -> EngineInfo | None:
        """Return the facts about the engine that serves; None if it is not this incarnation."""
        slot = self._slots.get(child)
        return slot.info if slot is not None and slot.incarnation == incarnation else None

    def predecessor(self, child: str) -> Exit | None:
        """Return how the incarnation before a child's current one ended; None for the first."""
        slot = self._slots.get(child)
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
            That incarnation has ended.
        EngineCallError
            The engine raised, did not answer in time, or offers no such call.
        """
        slot = self._slots.get(child)
        if slot is None or slot.link is None or slot.incarnation != incarnation:
            raise ChildUnavailableError(child, f"not up as incarnation {incarnation}")
        try:
            return await slot.link.ask(incarnation, method, args, kwargs, timeout)
        except HostGoneError as gone:
            raise ChildUnavailableError(
                child, f"lost during {method}(), which it may have carried out", cause=gone.end.root
            ) from None
        except HostCallFailedError as failed:
            raise EngineCallError(child, method, failed.causes, failed.traceback) from None

    def epoch(self, child: str) -> int | None:
        """Return the epoch of a child's host; None while it has none."""
        slot = self._slots.get(child)
        return None if slot is None or slot.link is None else slot.epoch

    def processes(self, child: str) -> list[tuple[str, ProcessId]]:
        """Return the processes of a child's host (if that is a separate one) and engine, with their roles."""
        slot = self._slots.get(child)
        if slot is None:
            return []
        # A host in this very process does not belong to the child, and must not be killed.
        own = slot.process is not None and slot.process.pid != os.getpid()
        host = [("host", slot.process)] if own and slot.process is not None else []
        return host + [("engine", process) for process in (slot.info.processes if slot.info else ())]

    def url(self, child: str) -> str:
        """Return the URL of a server; empty while it has none."""
        slot = self._slots.get(child)
        return slot.info.url if slot is not None and slot.info is not None else ""

    def last_url(self, child: str) -> str:
        """Return the URL that a server had last, also after its slot was removed; empty if it had none."""
        return self._urls.get(child, "")

    def remember_url(self, child: str, url: str) -> None:
        """Record the URL of a server that is up."""
        self._urls.pop(child, None)
        self._urls[child] = url
        if len(self._urls) > URLS_KEPT:
            del self._urls[next(iter(self._urls))]

    async def release(self, child: str) -> None:
        """End the child's host, and release the resources held for it."""
        slot = self._slots.pop(child, None)
        if slot is None:
            return
        slot.unhealthy = False  # its group no longer waits for it
        if self._factory is not None:
            slot.stop_listening()
            await self._factory.end_child(child, self.timeouts.proof)

    async def close(self) -> None:
        """End all hosts."""
        for slot in self._slots.values():
            slot.stop_listening()
        if self._factory is not None:
            await self._factory.close()

    # --- the transport of the pools' schedulers ------------------------------------------------

    async def submit(self, child: str, incarnation: int, commands: Sequence[GenerateCommand]) -> None:
        """Submit commands to an engine."""
        await self._link_to(child, incarnation).submit(incarnation, list(commands))

    async def abort(self, child: str, incarnation: int, attempts: Sequence[tuple[str, int]]) -> None:
        """End attempts in an engine."""
        await self._link_to(child, incarnation).abort(list(attempts))

    async def flow(self, child: str, incarnation: int, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading an engine's output for a request."""
        await self._link_to(child, incarnation).flow(request, attempt, is_open=is_open)

    def _link_to(self, child: str, incarnation: int) -> HostLink:
        slot = self._slots.get(child)
        if slot is None or slot.link is None or slot.incarnation != incarnation or slot.end is not None:
            end = Termination(
                causes=(Cause("EngineGoneError", f"incarnation {incarnation} of {child} has ended"),)
            )
            raise HostGoneError(child, 0 if slot is None else slot.epoch, end)
        return slot.link

    # --- hosts ----------------------------------------------------------------------------------

    async def host(self, slot: EngineSlot, incarnation: int, start: EngineStart, timeout: float) -> HostLink:
        """Return the slot's host; create one if there is none.

        Its epoch is the incarnation that it was created for: unique, and never less than before.
        """
        if slot.link is None:
            factory = cast("HostFactory", self._factory)  # open() came first
            options = start.options
            needs = start.gpu_arguments()
            if options.num_gpus is None and needs is not None:
                options = replace(options, num_gpus=self._gpus(needs))
            slot.epoch = incarnation
            slot.link = await factory.create(
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
                suspect = partial(self._note_suspicion, slot)
                group.start_soon(partial(monitor_host, slot, link, suspect, timeouts=self.timeouts))
                await self._watch(slot, link)
                group.cancel_scope.cancel()

    async def _listen(self, slot: EngineSlot, link: HostLink) -> None:
        empty_streams, why = 0, ""
        while empty_streams < STREAM_TRIES:
            empty_streams += 1
            try:
                async for items in link.stream():
                    empty_streams = 0
                    slot.last_heartbeat = anyio.current_time()
                    self._take(slot, items)
                why = "the host's stream ended while the host lives"
            except HostGoneError as gone:
                if not gone.end.unavailable:
                    return  # its end is reported by the sentinel
                why = str(gone)
            except Exception as error:  # noqa: BLE001 - whatever broke it, it is logged, and the stream opened again
                why = f"{type(error).__name__}: {error}"
            log.warning("host.stream.broke", child=slot.child, epoch=slot.epoch, why=why)
            self._reports.items_missing(slot.child, slot.incarnation, why)
            await anyio.sleep(self.timeouts.stream_reopen * 2**empty_streams)
        slot.settle(Termination(causes=(Cause("StreamBroken", why),), source="host", lost=True))

    def _take(self, slot: EngineSlot, items: Sequence[HostItem]) -> None:
        rest: list[HostItem] = []
        termination: Termination | None = None
        for item in items:
            if not isinstance(item, Phase | Terminated | Suspicion | Condition):
                rest.append(item)
            elif item.incarnation != slot.incarnation:
                pass  # of an incarnation that has ended
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
            self._note_suspicion(slot, "engine", item.causes)
        else:
            again, slot.unhealthy = slot.unhealthy, item.status != "healthy"
            if slot.unhealthy:
                self._reports.unhealthy(slot.child, item, again=again)

    def _note_suspicion(self, slot: EngineSlot, observer: str, causes: tuple[Cause, ...]) -> None:
        """Record an observer's suspicion that the incarnation hangs, or (without causes) withdraw it."""
        suspected = bool(slot.suspicions)
        slot.suspicions.pop(observer, None)
        if causes:
            slot.suspicions[observer] = causes
        if bool(slot.suspicions) != suspected:
            event = "suspect" if slot.suspicions else "clear"
            self._reports.condition(slot.child, slot.incarnation, event, causes)

    async def _watch(self, slot: EngineSlot, link: HostLink) -> None:
        tries, timeout = 0, self.timeouts.outcome
        while True:
            end = await link.ended()
            tries += 1
            if not end.unavailable or tries > UNAVAILABLE_TRIES:
                break
            # Not confirmed: call the same host again, a bounded number of times; it is never created twice.
            self._note_suspicion(slot, "ray", end.causes or (end.root,))
            try:
                await link.ready(timeout)
            except (HostGoneError, HostCallFailedError, TimeoutError):
                await anyio.sleep(timeout / UNAVAILABLE_TRIES * tries)
            else:
                tries = 0
                self._note_suspicion(slot, "ray", ())
        slot.settle(host_lost(end))


class EngineIncarnation:
    """One incarnation of an engine."""

    def __init__(self, backend: EngineBackend, slot: EngineSlot, incarnation: int, spec: ChildSpec) -> None:
        self._backend = backend
        self._slot = slot
        self._incarnation = incarnation
        self._start = cast("EngineStart", spec.start)
        self._timeout = spec.start_timeout
        self._recovery_timeout = spec.recovery_timeout
        self._link: HostLink | None = None

    async def start(self) -> None:
        """Start the engine in the slot's host."""
        answer: EngineInfo | Termination | None = None
        slot = self._slot
        slot.begin(self._incarnation, self._start.limits, self._timeout)
        try:
            try:
                link = await self._backend.host(slot, self._incarnation, self._start, self._timeout)
            finally:
                self._link = slot.link  # it may have been created though it did not come up
            # That the host is up is progress: the engine gets its whole start timeout.
            with anyio.CancelScope() as slot.starting:
                answer = await link.ensure_started(
                    self._incarnation,
                    self._start.arguments_after(self._backend.last_url(slot.child)),
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
            self._backend.remember_url(slot.child, answer.url)

    async def act(self, action: str) -> None:
        """Have the engine recover in place, or (``await``) wait until it has done so for an operator."""
        slot, timeout = self._slot, self._recovery_timeout
        if action == "await":
            await await_instruction(slot, self._incarnation, timeout)
        else:
            await recover(slot, self._incarnation, action, timeout, timeouts=self._backend.timeouts)

    async def ended(self) -> Termination:
        """Wait until the engine, or its host, has ended."""
        return await self._slot.ended()

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:  # noqa: ARG002 - engines do not get the reason
        """End the engine within its shutdown time, then its host."""
        link = self._link
        if link is None:
            return True
        if shutdown.seconds and not self._slot.unresponsive:
            grace = ENDLESS_SECONDS if math.isinf(shutdown.seconds) else shutdown.seconds
            try:
                await link.stop_engine(self._incarnation, grace)
            except (HostGoneError, HostCallFailedError, TimeoutError) as error:
                log.warning(
                    "engine.stop.failed",
                    child=self._slot.child,
                    incarnation=self._incarnation,
                    error=str(error),
                )
        if self._slot.incarnation != self._incarnation and self._slot.link is link:
            # Its host serves a newer incarnation, the start of which has ended this one.
            return await self._engine_gone(link)
        return await self._host_gone(link)

    async def clean(self) -> bool:
        """Have the host end the remaining processes of its engine; without an answer, end the host too."""
        link = self._link
        if link is None:
            return True
        slot = self._slot
        answered = slot.link is not link or (slot.process is not None and not slot.unresponsive)
        if answered and await self._engine_gone(link):
            return True
        return await self._host_gone(link)

    async def _engine_gone(self, link: HostLink) -> bool:
        try:
            with anyio.fail_after(self._backend.timeouts.proof):
                await link.stop_engine(self._incarnation, 0.0)
        except (HostGoneError, HostCallFailedError, TimeoutError):
            return False
        return True

    async def _host_gone(self, link: HostLink) -> bool:
        self._slot.leave(link)
        report = await link.end(self._backend.timeouts.proof)
        return report.verified
