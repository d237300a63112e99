"""The way from a pool to one incarnation of an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio

from rayvisor._core.protocol.wire import GenerateCommand
from rayvisor._core.requests.effects import Abort, Flow, SendCommands
from rayvisor._log import get_logger

__all__ = ["CommandSender", "EngineTransport"]

log = get_logger("rayvisor.pool")


class EngineTransport(Protocol):
    """Carries a pool's commands to its engines; a call that fails raises. The pool bounds each in time."""

    async def submit(self, child: str, incarnation: int, orders: Sequence[GenerateCommand], /) -> None:
        """Give generate commands to an engine. Returns once its host has them."""
        ...

    async def abort(self, child: str, incarnation: int, attempts: Sequence[tuple[str, int]], /) -> None:
        """Abort these attempts (sample id, attempt) in the engine. Unknown ones are no error."""
        ...

    async def flow(self, child: str, incarnation: int, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading the engine's output of one attempt."""
        ...


class CommandSender:
    """Queues the commands for one incarnation, and sends them one call after the other.

    The queue is bounded by what the scheduler puts in flight on an engine: a command that is aborted before
    it was sent is taken out again, and of an attempt's flow control only the last setting is kept.

    Parameters
    ----------
    transport
        Reaches the engine.
    child, incarnation
        The engine.
    timeout
        Seconds that a call may take.
    not_sent
        Called with the commands whose sending failed, and the reason.
    """

    def __init__(
        self,
        transport: EngineTransport,
        child: str,
        incarnation: int,
        timeout: float,
        not_sent: Callable[[CommandSender, Sequence[GenerateCommand], str], None],
    ) -> None:
        self.child = child
        self.incarnation = incarnation
        self._transport = transport
        self._timeout = timeout
        self._not_sent = not_sent
        self._orders: dict[tuple[str, int], GenerateCommand] = {}
        self._flows: dict[tuple[str, int], bool] = {}
        self._aborts: dict[tuple[str, int], None] = {}
        self._queued = anyio.Event()
        self._scope = anyio.CancelScope()

    def put(self, effect: SendCommands | Abort | Flow) -> None:
        """Queue a command."""
        match effect:
            case SendCommands(orders=orders):
                self._orders.update({(order.request, order.attempt): order for order in orders})
            case Flow(request=request, attempt=attempt, open=is_open):
                self._flows[request, attempt] = is_open
            case Abort(attempts=attempts):
                for attempt_id in attempts:
                    self._flows.pop(attempt_id, None)
                    if self._orders.pop(attempt_id, None) is None:
                        self._aborts[attempt_id] = None
        self._queued.set()

    def close(self) -> None:
        """Stop sending: the incarnation is gone, and the rest of the queue is dropped."""
        self._scope.cancel()

    async def run(self) -> None:
        """Send until closed."""
        with self._scope:
            while not self._scope.cancel_called:
                if not (self._orders or self._aborts or self._flows):
                    self._queued = anyio.Event()
                    await self._queued.wait()
                await self._send_all()

    async def _send_all(self) -> None:
        transport, child, incarnation = self._transport, self.child, self.incarnation
        if self._aborts:
            aborts, self._aborts = list(self._aborts), {}
            await self._bounded("abort", transport.abort(child, incarnation, aborts))
        if self._orders:
            orders, self._orders = list(self._orders.values()), {}
            failure = await self._bounded("submit", transport.submit(child, incarnation, orders))
            if failure is not None:
                self._not_sent(self, orders, failure)
        flows, self._flows = self._flows, {}
        for (request, attempt), is_open in flows.items():
            call = transport.flow(child, incarnation, request, attempt, is_open=is_open)
            await self._bounded("flow", call)

    async def _bounded(self, what: str, call: Awaitable[None]) -> str | None:
        """Await a call within the timeout; return the reason if it failed."""
        try:
            with anyio.fail_after(self._timeout):
                await call
        except TimeoutError:
            failure = f"no answer to {what} within {self._timeout:g} s"
        except Exception as error:  # noqa: BLE001 - whatever a transport raises is logged, and routed around
            failure = f"{type(error).__name__}: {error}"
        else:
            return None
        log.warning(
            "pool.send.failed", call=what, child=self.child, incarnation=self.incarnation, why=failure
        )
        return failure
