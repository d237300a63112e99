"""vLLM's own fault tolerance on the CPU.

vLLM wants data parallelism, a mixture of experts and a GPU for it. The code that handles a fault needs none
of them: so its switch is set after the arguments have been checked. It is for tests only.
"""

from __future__ import annotations

from typing import Any

from rayvisor._vllm.engine import VllmEngine

__all__ = ["TolerantEngine"]


class TolerantEngine(VllmEngine):
    """A vLLM engine with fault tolerance; its second incarnation and those after it are without."""

    def _configure(self) -> Any:
        config = super()._configure()
        if self._incarnation == 1:
            parallel = config.parallel_config
            parallel.enable_fault_tolerance = True
            parallel.all2all_backend = "nixl_ep"
            parallel.fault_tolerance_config.engine_recovery_timeout_sec = 60
        return config
