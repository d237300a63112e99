"""vLLM's own fault tolerance on the CPU, in the first incarnation only."""

from __future__ import annotations

from typing import Any

from rayvisor._backends.vllm.rehearsal import WORKER, RehearsalEngine
from rayvisor._backends.vllm.vllm_engine import VllmEngine

__all__ = ["TolerantEngine"]


class TolerantEngine(RehearsalEngine):
    """A vLLM engine with fault tolerance in its first incarnation only."""

    def _configure(self) -> Any:
        if self._incarnation == 1:
            return super()._configure()
        self._arguments["worker_cls"] = WORKER
        return VllmEngine._configure(self)
