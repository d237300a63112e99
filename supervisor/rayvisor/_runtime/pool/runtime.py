"""The work behind an engine pool: it routes requests to engines and delivers their streams."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import anyio
import anyio.abc

from rayvisor._core.protocol.wire import EngineInfo, GenerateCommand, HostItem, Prompt
from rayvisor._core.requests.effects import (
    Abandoned,
    Abort,
    Deliver,
    Effect,
    Fail,
    Finish,
    Flow,
    MadeProgress,
    NextDeadline,
    SendCommands,
)
from rayvisor._core.requests.errors import (
    GenerationClosedError,
    GenerationInUseError,
    RequestError,
)
from rayvisor._core.requests.limits import OnWeightsChanged, RequestLimits
from rayvisor._core.requests.results import Usage
from rayvisor._core.requests.scheduler import RequestScheduler
from rayvisor._core.requests.state import Place
from rayvisor._core.requests.stats import PoolStats, stats_of
from rayvisor._log import get_logger
from rayvisor._runtime.pool.pause_control import PauseControl
from rayvisor._runtime.pool.sender import CommandSender, EngineTransport
from rayvisor._runtime.pool.streams import Generation, Stream
from rayvisor.faults import Fault
from rayvisor.timeouts import DEFAULT_TIMEOUTS

if TYPE_CHECKING:
    from rayvisor._runtime.pool.batch import Params

__all__ = ["PoolRuntime"]

log = get_logger("rayvisor.pool")


class PoolRuntime:
    """Carries out what the scheduler of a pool decides: timers, senders and streams.

    The registry makes one for each engine pool and reports the state of its engines to it. All methods are
    called on the pool's event loop.

    Parameters
    ----------
    transport
        Reaches the engines.
    name
        Path of the pool; the ids of its requests begin with it.
    limits
        Queue limit, timeout and number of attempts of its requests.
    on_useful
        Called with child and incarnation the first time that an incarnation does useful work.
    rng
        Source of the seeds of sampled requests.
    clock
        Seconds, monotonic.
    send_timeout
        Seconds that a call on the transport may take; a command not delivered by then is routed again.
    """

    def __init__(
        self,
        transport: EngineTransport,
        *,
        name: str = "pool",
        limits: RequestLimits | None = None,
        on_useful: Callable[[str, int], None] = lambda _child, _incarnation: None,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        send_timeout: float = DEFAULT_TIMEOUTS.runtime.send,
    ) -> None:
        self.name = name
        self._transport = transport
        self._scheduler = RequestScheduler(limits or RequestLimits(), rng or Random())
        self.pausing = PauseControl(self._scheduler, self._apply, clock)
        self._on_useful = on_useful
        self._clock = clock
        self._send_timeout = send_timeout
        self._numbers = count(1)
        self._streams: dict[str, Stream] = {}
        self._senders: dict[str, CommandSender] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own: anyio.abc.TaskGroup | None = None
        self._time_keeper = anyio.CancelScope()
        self._next: float | None = None
        self._wake = anyio.Event()
        self._room: anyio.Event | None = None
        self._pending: deque[Effect] = deque()
        self._applying = False

    # --- requests -------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        params: Params | None,
        *,
        timeout: float | None,
        max_attempts: int | None,
        on_divergence: Literal["splice", "fail"] | None,
        on_weights_changed: OnWeightsChanged | None,
    ) -> Generation:
        """Send a request, and return its stream immediately; see `EnginePool.generate`."""
        self._check_running()
        self.check_loop(self.name)
        stream = Stream(self, f"{self.name}-{next(self._numbers)}")
        self._streams[stream.request] = stream
        try:
            effects = self._scheduler.submit(
                stream.request,
                prompt,
                params,
                self._clock(),
                timeout=timeout,
                max_attempts=max_attempts,
                on_divergence=on_divergence,
                on_weights_changed=on_weights_changed,
            )
        except BaseException:  # also one that nobody foresaw: a parameter can raise anything
            del self._streams[stream.request]
            raise
        self._apply(effects)
        return Generation(stream)

    async def room(self) -> None:
        """Wait until the queue takes a request again. Bounded: the requests in it have deadlines."""
        self._room = self._room or anyio.Event()
        await self._room.wait()

    def stats(self) -> PoolStats:
        """Return how many requests wait, run and have ended."""
        return stats_of(self._scheduler)

    # --- engines --------------------------------------------------------------------------------

    def engine_up(self, child: str, incarnation: int, info: EngineInfo, *, spare: bool = False) -> None:
        """Record that an engine is up. Call it again, with ``spare=False``, when a spare takes over."""
        sender = self._senders.get(child)
        if sender is None or sender.incarnation < incarnation:
            if sender is not None:
                sender.close()
            self._senders[child] = sender = CommandSender(
                self._transport, child, incarnation, self._send_timeout, self._not_sent
            )
            self._check_running().start_soon(sender.run)
        self._apply(self._scheduler.engine_up(child, incarnation, info, self._clock(), spare=spare))

    def in_quarantine(self, child: str, incarnation: int) -> bool:
        """Whether a request that is suspected of having ended other engines runs alone on this one."""
        engine = self._scheduler.routing.live(child, incarnation)
        return engine is not None and engine.reserved is not None and engine.reserved.place is Place.IN_FLIGHT

    def engine_down(self, child: str, incarnation: int, fault: Fault | None) -> None:
        """Record that an engine has ended: its requests in flight move to other engines.

        A fault is a strike against each of these requests; None, or an INTENDED fault, is not.
        """
        sender = self._senders.get(child)
        if sender is not None and sender.incarnation == incarnation:
            del self._senders[child]
            sender.close()
        self._apply(self._scheduler.engine_down(child, incarnation, fault, self._clock()))

    def set_admission(self, child: str, *, is_open: bool) -> None:
        """Set whether a child gets new requests; at first every child does."""
        self._apply(self._scheduler.gate(child, is_open=is_open, now=self._clock()))

    def mark_stale(self, child: str) -> None:
        """Record that a child's weights are about to change; admission is closed before."""
        self._apply(self._scheduler.stale(child, self._clock()))

    def weights(self, child: str, incarnation: int, version: int) -> None:
        """Record the version of the weights that an engine has from now on, before it is admitted."""
        self._scheduler.weights(child, incarnation, version)

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Process the items that an engine sent; those that do not belong to requests are ignored."""
        self._apply(self._scheduler.items(child, incarnation, items, self._clock()))

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Send again everything that an engine has in flight: some of its items may have been lost."""
        self._apply(self._scheduler.resync(child, incarnation, reason, self._clock()))

    def close(self, fault: Fault | None) -> None:
        """Fail the requests that have no engine, and new ones, until an engine is up again."""
        self._apply(self._scheduler.close(fault, self._clock()))

    # --- running --------------------------------------------------------------------------------

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Run in this task group, until ``stop`` or its end."""
        self._tasks, self._loop = tasks, asyncio.get_running_loop()
        self._time_keeper = anyio.CancelScope()
        tasks.start_soon(self._keep_time)

    def stop(self, fault: Fault | None = None) -> None:
        """Stop: every open request fails with ``NoEngineError``."""
        self._apply(self._scheduler.close(fault, self._clock(), immediately=True))
        for sender in self._senders.values():
            sender.close()
        self._senders.clear()
        self._time_keeper.cancel()
        self._tasks = None

    async def __aenter__(self) -> Self:
        self._own = await anyio.create_task_group().__aenter__()
        self.start(self._own)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        own, self._own = self._own, None
        if own is not None:
            # Without the body's error, which the group would wrap; errors of its tasks are raised.
            await own.__aexit__(None, None, None)

    def _check_running(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise RequestError(
                "", f"pool {self.name} does not run; use it inside its supervisor's async with"
            )
        return self._tasks

    def check_loop(self, request: str) -> None:
        """Raise unless this is the pool's event loop; the pool itself may have stopped."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self._loop:
            raise GenerationInUseError(
                request, "is used from another event loop than its pool's; rayvisor.run_in_thread is for that"
            )

    async def _keep_time(self) -> None:
        with self._time_keeper:
            try:
                while True:
                    self._wake = anyio.Event()
                    rest = None if self._next is None else max(0.0, self._next - self._clock())
                    with anyio.move_on_after(rest):
                        await self._wake.wait()
                    if self._next is not None and self._next <= self._clock():
                        self.tick()
            finally:
                # Without this task no deadline is enforced, so no stream may stay open.
                self._apply(self._scheduler.close(None, self._clock(), immediately=True))

    def tick(self) -> None:
        """Process the deadlines that have passed. The pool calls it when one is due."""
        self._next = None
        self._apply(self._scheduler.tick(self._clock()))

    def _apply(self, effects: list[Effect]) -> None:
        self._pending.extend(effects)
        if self._applying:  # called from within an effect: the loop below continues with these
            return
        self._applying = True
        try:
            while self._pending:
                effect = self._pending.popleft()
                try:
                    self._carry_out(effect)
                except Exception as error:
                    if not isinstance(effect, Deliver | Finish | Fail | Abandoned):
                        raise
                    self._contain(effect.request, error)
        finally:
            self._applying = False
        if self._room is not None and self._scheduler.room > 0:
            self._room.set()
            self._room = None
        self.pausing.notify()

    def _contain(self, request: str, error: Exception) -> None:
        """End the one request whose delivery raised this error; the others are not affected."""
        with suppress(Exception):  # the log itself may be what failed
            log.error("pool.request.broken", request=request, exc_info=error)
        self._pending.extend(self._scheduler.abandon(request, self._clock()))
        stream = self._streams.pop(request, None)
        if stream is not None:
            broken = RequestError(
                request, f"request {request} could not be delivered: {type(error).__name__}"
            )
            broken.__cause__ = error
            stream.end(Usage(0, 0), error=broken)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Deliver(request, chunk):
                stream = self._streams.get(request)
                if stream is not None:  # otherwise it could not be delivered
                    stream.push(chunk)
                if chunk.divergence is not None:
                    log.warning("pool.request.diverged", request=request, divergence=str(chunk.divergence))
            case SendCommands(child) | Abort(child) | Flow(child):
                sender = self._senders.get(child)
                if sender is not None and sender.incarnation == effect.incarnation:
                    sender.put(effect)
            case Finish() | Fail() | Abandoned():
                self._end(effect)
            case MadeProgress(child, incarnation):
                self._on_useful(child, incarnation)
            case NextDeadline(at):
                self._next = at
                self._wake.set()

    def _end(self, effect: Finish | Fail | Abandoned) -> None:
        stream = self._streams.get(effect.request)
        if stream is None:  # it could not be delivered
            return
        match effect:
            case Finish(_, completion):
                stream.end(completion.usage, completion=completion)
            case Fail(_, error, usage):
                stream.end(usage, error=error)
            case Abandoned(request, usage):
                stream.end(usage, error=GenerationClosedError(request))
        del self._streams[effect.request]
        match effect:  # only now, since the program's logging can fail
            case Fail(request, error):
                log.warning(
                    "pool.request.failed",
                    request=request,
                    kind=type(error).__name__,
                    why=str(error),
                    exc_info=error.__cause__,
                )
            case Abandoned(request, usage):
                log.info("pool.request.left", request=request, tokens=usage.completion_tokens)
            case Finish():
                pass

    def taken(self, request: str, index: int, tokens: int) -> None:
        """Record that the reader has taken tokens of a sample. Called by its stream."""
        self._apply(self._scheduler.taken(request, index, tokens, self._clock()))

    def abandon(self, request: str) -> None:
        """Abort a request. Called by its stream when the reader leaves it."""
        self._apply(self._scheduler.abandon(request, self._clock()))

    def usage(self, request: str) -> Usage:
        """Return what an open request has used so far."""
        return self._scheduler.usage(request)

    def _not_sent(self, sender: CommandSender, orders: Sequence[GenerateCommand], reason: str) -> None:
        attempts = [(order.request, order.attempt) for order in orders]
        self._apply(
            self._scheduler.send_failed(sender.child, sender.incarnation, attempts, reason, self._clock())
        )
