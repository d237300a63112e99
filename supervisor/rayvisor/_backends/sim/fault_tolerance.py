"""The host's side of the simulated engine's fault tolerance; it corresponds to vLLM's client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from rayvisor._backends.host.engine import EngineError, EngineStatus

__all__ = ["FaultTolerance"]


class FaultTolerance:
    """The last status that the core has pushed, and the instructions that await their answer.

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
        """Return the status in vLLM's form; it lists no engine if there is no fault tolerance."""
        engine: dict[str, Any] = {"id": 0, "status": self.status.status}
        if self.status.fault:
            engine["fault_info"] = self.status.fault
        return {"schema_version": 1, "total_engines": 1, "engines": [engine] if self._on else []}

    async def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send an instruction to the core, and wait for its answer.

        Raises
        ------
        EngineError
            The engine has no fault tolerance, or has ended.
        """
        if not self._on:
            raise EngineError("the engine has no fault tolerance: it accepts no instruction")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"instruction": [number, dict(request)]})
            return await answer
        finally:
            del self._waiting[number]

    def handle_message(self, message: Mapping[str, Any]) -> None:
        """Handle a message of the core."""
        if "status" in message:
            self.status = EngineStatus(*message["status"])
        if "acknowledged" in message:
            number, result = message["acknowledged"]
            answer = self._waiting.get(number)
            if answer is not None and not answer.done():
                answer.set_result(result)

    def end(self, error: EngineError) -> None:
        """Fail all pending instructions: the engine has ended."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
