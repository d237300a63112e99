"""The simulated engine's fault tolerance, seen from its host: what vLLM's client knows and does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from rayvisor._backends.host.engine import EngineError, EngineStatus

__all__ = ["FaultTolerance"]


class FaultTolerance:
    """The last status that the core has pushed, and the instructions that wait for their answer.

    Parameters
    ----------
    arguments
        The engine's arguments.
    send
        Sends a message to the core.
    """

    def __init__(self, arguments: Mapping[str, Any], send: Callable[[Mapping[str, Any]], None]) -> None:
        self._on = bool(arguments["fault_tolerance"])
        self._send = send
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.instructions: tuple[str, ...] = ("retry",) if self._on else ()
        self.recovery_timeout = float(arguments["recovery_timeout"]) if self._on else 0.0
        self.status = EngineStatus("healthy")

    def report(self) -> dict[str, Any]:
        """The status in vLLM's form; it names no engine where there is no fault tolerance."""
        engine: dict[str, Any] = {"id": 0, "status": self.status.status}
        if self.status.fault:
            engine["fault_info"] = self.status.fault
        return {"schema_version": 1, "total_engines": 1, "engines": [engine] if self._on else []}

    async def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Pass an instruction on, and wait for its answer."""
        if not self._on:
            raise EngineError("the engine has no fault tolerance: it takes no instruction")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"instruction": [number, dict(request)]})
            return await answer
        finally:
            del self._waiting[number]

    def take(self, message: Mapping[str, Any]) -> None:
        """Take note of what the core says."""
        if "status" in message:
            self.status = EngineStatus(*message["status"])
        if "acknowledged" in message:
            number, said = message["acknowledged"]
            answer = self._waiting.get(number)
            if answer is not None and not answer.done():
                answer.set_result(said)

    def end(self, error: EngineError) -> None:
        """The engine has ended: nobody will answer any more."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
