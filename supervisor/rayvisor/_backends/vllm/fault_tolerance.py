"""vLLM's fault tolerance, as an AsyncLLM offers it: what it knows, how it says it is, what it is told.

Without fault tolerance an instruction breaks the engine's input thread, so none is ever passed on then; nor
one that this version of vLLM does not know.
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
        """The status as vLLM reports it; it names no engine where fault tolerance is off."""
        report: dict[str, Any] = await self._llm.get_status()
        return report

    async def status(self) -> EngineStatus:
        """The worst that its engines say of themselves; vLLM has it at hand, and asks nobody."""
        engines = (await self.report())["engines"]
        for status in ("dead", "unhealthy"):
            for engine in engines:
                if engine["status"] == status:
                    return EngineStatus(status, str(engine.get("fault_info") or ""))
        return EngineStatus("healthy")

    async def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Pass an instruction on; the answer is vLLM's acknowledgement.

        Raises
        ------
        EngineError
            The engine takes none, or not this one.
        """
        instruction = request["instruction"]
        if instruction not in self.instructions:
            known = ", ".join(self.instructions) or "none: it has no fault tolerance"
            raise EngineError(f"the engine does not take the instruction {instruction!r}; it takes {known}")
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
    """What an engine core can be told: the methods of its sentinel that answer a request with a result."""
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
        except NameError:  # known to type checkers only, so it is neither of the two
            continue
        if hints.pop("return", None) is FaultToleranceResult and FaultToleranceRequest in hints.values():
            found.append(name)
    return tuple(found)
