"""TODO docstring."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from random import Random
from types import TracebackType
from typing import Any, Literal, Self, overload

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
    QueueFullError,
    RequestError,
)
from rayvisor._core.requests.limits import RequestLimits
from rayvisor._core.requests.results import Completion, Usage
from rayvisor._core.requests.scheduler import RequestScheduler
from rayvisor._core.requests.state import Place
from rayvisor._core.requests.stats import PoolStats, stats_of
from rayvisor._log import get_logger
from rayvisor._public import shown_as
from rayvisor._runtime.pool.batch import Params, pairs, run_batch
from rayvisor._runtime.pool.pausing import Pausing
from rayvisor._runtime.pool.sender import CommandSender, EngineTransport
from rayvisor._runtime.pool.streams import Generation, Stream
from rayvisor.faults import Fault

__all__ = ["EnginePool"]


log = get_logger("rayvisor.pool")


OnWeightsChanged = Literal["splice", "restart", "fail"]


class EnginePool:
    """Engines on one side, requests on the other, and no request lost between them.

    A supervisor makes one for each [`engine_pool`][rayvisor.engine_pool] child and tells it of its
    engines; ``sup["llm"]`` is such a pool.

    Parameters
    ----------
    line
        How engines are reached.
    name
        Begins the ids of its requests.
    limits
        What bounds its requests.
    on_useful
        Called with child and incarnation when an engine has done useful work for the first time.
    rng
        Where seeds of sampled requests come from.
    clock
        Seconds, monotonic.
    send_timeout
        Seconds that a call on the line may take; an order not given to its engine by then is routed anew.

    Examples
    --------
    Inside ``async with rv.Supervisor(spec) as sup``::

        async for chunk in sup["llm"].generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")
        completion = await sup["llm"].generate("Once", {"temperature": 0}).result()
        print(completion.text, completion.usage)
    """

    def __init__(
        self,
        line: EngineTransport,
        *,
        name: str = "pool",
        limits: RequestLimits | None = None,
        on_useful: Callable[[str, int], None] = lambda _child, _incarnation: None,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        send_timeout: float = 10.0,
    ) -> None:
        self.name = name
        self._line = line
        self._scheduler = RequestScheduler(limits or RequestLimits(), rng or Random())
        self.pausing = Pausing(self._scheduler, self._apply, clock)
        self._on_useful = on_useful
        self._clock = clock
        self._send_timeout = send_timeout
        self._numbers = count(1)
        self._streams: dict[str, Stream] = {}
        self._outboxes: dict[str, CommandSender] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own: anyio.abc.TaskGroup | None = None
        self._time_keeper = anyio.CancelScope()
        self._next: float | None = None
        self._wake = anyio.Event()
        self._room: anyio.Event | None = None
        self._pending: deque[Effect] = deque()
        self._applying = False

    # Requests

    def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
    ) -> Generation:
        """Send a request, and return its stream at once.

        Parameters
        ----------
        prompt
            Text, token ids, or chat messages.
        params
            Fields of vLLM's ``SamplingParams``; what is not given has vLLM's default (``max_tokens`` 16,
            ``temperature`` 1.0).
        timeout
            Seconds until its last chunk must have come, the wait for an engine included.
        max_attempts
            How many engines it may be given to.
        on_divergence
            What to do when it is generated again and comes out different; see
            [`RequestLimits`][rayvisor.pool.RequestLimits].
        on_weights_changed
            What to do when the weights change under it: ``"splice"``, ``"restart"`` or ``"fail"``; see there.

        Raises
        ------
        InvalidRequestError
            A value cannot work.
        QueueFullError
            Too many requests wait already.
        NoEngineError
            No engine will come back.
        """
        self._running  # noqa: B018 - raises if it does not run
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
        except RequestError:
            del self._streams[stream.request]
            raise
        self._apply(effects)
        return Generation(stream)

    @overload
    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: Literal[False] = False,
    ) -> list[Completion]: ...

    @overload
    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: Literal[True],
    ) -> list[Completion | RequestError]: ...

    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: bool = False,
    ) -> list[Any]:
        """Send a batch, and return its completions in the order of the prompts.

        Waits for room in the queue instead of failing, so a batch may be of any length.

        Parameters
        ----------
        prompts
            One request each.
        params
            For all of them, or a sequence with one mapping for each.
        timeout, max_attempts, on_divergence, on_weights_changed
            As for ``generate``, for each request from the moment it is sent.
        return_errors
            Put the error of a failed request in its place. If False, the first one is raised and the
            other requests are aborted.
        """

        async def send(prompt: Prompt, own: Params | None) -> Generation:
            while True:
                try:
                    return self.generate(
                        prompt,
                        own,
                        timeout=timeout,
                        max_attempts=max_attempts,
                        on_divergence=on_divergence,
                        on_weights_changed=on_weights_changed,
                    )
                except QueueFullError:
                    # Bounded: what fills the queue has deadlines of its own.
                    self._room = self._room or anyio.Event()
                    await self._room.wait()

        return await run_batch(send, pairs(prompts, params), return_errors=return_errors)

    def stats(self) -> PoolStats:
        """Count what waits, what runs, and what has been done."""
        return stats_of(self._scheduler)

    # Engines: called by whoever keeps them, on the pool's event loop

    def engine_up(self, child: str, incarnation: int, info: EngineInfo, *, spare: bool = False) -> None:
        """Note that an engine is up. Call it again, with ``spare=False``, when a spare takes over."""
        box = self._outboxes.get(child)
        if box is None or box.incarnation < incarnation:
            if box is not None:
                box.close()
            self._outboxes[child] = box = CommandSender(
                self._line, child, incarnation, self._send_timeout, self._not_sent
            )
            self._running.start_soon(box.run)
        self._apply(self._scheduler.engine_up(child, incarnation, info, self._clock(), spare=spare))

    def quarantines(self, child: str, incarnation: int) -> bool:
        """Whether a request runs alone on this engine, under suspicion of having killed others."""
        engine = self._scheduler.routing.live(child, incarnation)
        return engine is not None and engine.reserved is not None and engine.reserved.place is Place.IN_FLIGHT

    def engine_down(self, child: str, incarnation: int, fault: Fault | None) -> None:
        """Note that an engine has ended: what it had in flight moves.

        A fault is a strike for each request in flight there; None, or an INTENDED one, is not.
        """
        box = self._outboxes.get(child)
        if box is not None and box.incarnation == incarnation:
            del self._outboxes[child]
            box.close()
        self._apply(self._scheduler.engine_down(child, incarnation, fault, self._clock()))

    def gate(self, child: str, *, is_open: bool) -> None:
        """Let a child have new work, or not, from this incarnation on; at first every gate is open."""
        self._apply(self._scheduler.gate(child, is_open=is_open, now=self._clock()))

    def stale(self, child: str) -> None:
        """Say that a child's weights are about to change. Its gate is closed before."""
        self._apply(self._scheduler.stale(child, self._clock()))

    def weights(self, child: str, incarnation: int, version: int) -> None:
        """Say which weights an engine has from now on, before its gate is opened."""
        self._scheduler.weights(child, incarnation, version)

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Take in what an engine sent; items that are not about requests are passed over."""
        self._apply(self._scheduler.items(child, incarnation, items, self._clock()))

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Say that items of a living engine may have been lost: all it has in flight is sent anew."""
        self._apply(self._scheduler.resync(child, incarnation, reason, self._clock()))

    def close(self, fault: Fault | None) -> None:
        """No engine will come back: requests without one fail, new ones too, until an engine is up again."""
        self._apply(self._scheduler.close(fault, self._clock()))

    # Running

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Run in this task group, until ``stop`` or its end."""
        self._tasks, self._loop = tasks, asyncio.get_running_loop()
        self._time_keeper = anyio.CancelScope()
        tasks.start_soon(self._keep_time)

    def stop(self, fault: Fault | None = None) -> None:
        """End: every open request fails with ``NoEngineError``."""
        self._apply(self._scheduler.close(fault, self._clock(), immediately=True))
        for box in self._outboxes.values():
            box.close()
        self._outboxes.clear()
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
            # Not told of the body's error, the group cannot wrap it; those of its own tasks it still raises.
            await own.__aexit__(None, None, None)

    @property
    def _running(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise RequestError(
                "", f"pool {self.name} does not run; use it inside its supervisor's async with"
            )
        return self._tasks

    def check_loop(self, request: str) -> None:
        """Raise unless this is the pool's event loop: it may have stopped, and what it left is read still."""
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
                # Whatever ended this task: without it deadlines would not be kept, so no stream stays open.
                self._apply(self._scheduler.close(None, self._clock(), immediately=True))

    def tick(self) -> None:
        """Look at the clock. The pool does it by itself when something is due."""
        self._next = None
        self._apply(self._scheduler.tick(self._clock()))

    def _apply(self, effects: list[Effect]) -> None:
        self._pending.extend(effects)
        if self._applying:  # an effect led here: its effects come after those before it
            return
        self._applying = True
        try:
            while self._pending:
                self._carry_out(self._pending.popleft())
        finally:
            self._applying = False
        if self._room is not None and self._scheduler.room > 0:
            self._room.set()
            self._room = None
        self.pausing.look()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Deliver(request, chunk):
                if chunk.divergence is not None:
                    log.warning("pool.request.diverged", request=request, divergence=str(chunk.divergence))
                self._streams[request].push(chunk)
            case SendCommands(child) | Abort(child) | Flow(child):
                box = self._outboxes.get(child)
                if box is not None and box.incarnation == effect.incarnation:
                    box.put(effect)
            case Finish() | Fail() | Abandoned():
                self._end(effect)
            case MadeProgress(child, incarnation):
                self._on_useful(child, incarnation)
            case NextDeadline(at):
                self._next = at
                self._wake.set()

    def _end(self, effect: Finish | Fail | Abandoned) -> None:
        stream = self._streams.pop(effect.request)
        match effect:
            case Finish(_, completion):
                stream.end(completion.usage, completion=completion)
            case Fail(request, error, usage):
                log.warning("pool.request.failed", request=request, kind=type(error).__name__, why=str(error))
                stream.end(usage, error=error)
            case Abandoned(request, usage):
                log.info("pool.request.left", request=request, tokens=usage.completion_tokens)
                stream.end(usage, error=GenerationClosedError(request))

    def taken(self, request: str, index: int, tokens: int) -> None:
        """Note that a reader took tokens of a sample: its stream says so."""
        self._apply(self._scheduler.taken(request, index, tokens, self._clock()))

    def abandon(self, request: str) -> None:
        """Abort a request: its stream says so when it is left."""
        self._apply(self._scheduler.abandon(request, self._clock()))

    def usage(self, request: str) -> Usage:
        """Return what an open request has used so far."""
        return self._scheduler.usage(request)

    def _not_sent(self, box: CommandSender, orders: Sequence[GenerateCommand], reason: str) -> None:
        attempts = [(order.request, order.attempt) for order in orders]
        self._apply(self._scheduler.send_failed(box.child, box.incarnation, attempts, reason, self._clock()))


shown_as("rayvisor.pool", EnginePool)
