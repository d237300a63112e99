"""vLLM's fault tolerance, as an AsyncLLM offers it: its status and its instructions.

Without fault tolerance an instruction breaks the engine's input thread. So none is passed on then, nor one
that this version of vLLM does not know.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rayvisor._backends.host.engine import EngineError, EngineStatus

__all__ = ["FaultTolerance"]


class FaultTolerance:
    """The fault tolerance of one engine.

    Parameters
    ----------
    llm
        The running ``AsyncLLM``.
    """

    def __init__(self, llm: Any) -> None:
        parallel = llm.vllm_config.parallel_config
        on = bool(getattr(parallel, "enable_fault_tolerance", False))
        self._llm = llm
        self.instructions: tuple[str, ...] = _instructions() if on else ()
        self.recovery_timeout = (
            float(parallel.fault_tolerance_config.engine_recovery_timeout_sec) if on else 0.0
        )

    async def report(self) -> dict[str, Any]:
        """Return the status as vLLM reports it; it lists no engine if fault tolerance is off."""
        report: dict[str, Any] = await self._llm.get_status()
        return report

    async def status(self) -> EngineStatus:
        """Return the worst status of its engines. vLLM has it in memory and sends no message for it."""
        return EngineStatus.worst_of((await self.report())["engines"])

    async def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Pass an instruction on, and return vLLM's acknowledgement.

        Raises
        ------
        EngineError
            The engine accepts no instruction, or not this one.
        """
        instruction = request["instruction"]
        if instruction not in self.instructions:
            known = ", ".join(self.instructions) or "none: it has no fault tolerance"
            raise EngineError(
                f"the engine does not accept the instruction {instruction!r}; it accepts {known}"
            )
        from vllm.v1.fault_tolerance.utils import FaultToleranceRequest

        result = await self._llm.handle_fault(
            FaultToleranceRequest(
                instruction=instruction,
                params=dict(request.get("params") or {}),
                request_id=str(request.get("request_id") or ""),
            )
        )
        return {"request_id": result.request_id, "success": result.success, "reason": result.reason}


def _instructions() -> tuple[str, ...]:
    """Return an engine core's instructions: the methods of its sentinel that map a request to a result."""
    try:
        from vllm.v1.fault_tolerance import EngineCoreSentinel
        from vllm.v1.fault_tolerance.utils import FaultToleranceRequest, FaultToleranceResult
    except ImportError:
        return ()
    found = []
    for name, method in inspect.getmembers(EngineCoreSentinel, inspect.isfunction):
        if name.startswith("_"):
            continue
        try:
            hints = inspect.get_annotations(method, eval_str=True)
        except NameError:  # a type known to type checkers only is neither of the two
            continue
        if hints.pop("return", None) is FaultToleranceResult and FaultToleranceRequest in hints.values():
            found.append(name)
    return tuple(found)
