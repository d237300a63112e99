"""vLLM's own fault tolerance without the GPUs that it asks for: for rehearsals, and for tests.

vLLM wants data parallelism, a mixture of experts and a GPU for it. The code that handles a fault needs none
of them: so its switch is set after the arguments have been checked, and what waits for the accelerator
waits for none.
"""

from __future__ import annotations

from typing import Any

from rayvisor._vllm.engine import VllmEngine

__all__ = ["WORKER", "RehearsalEngine"]

WORKER = "rayvisor._vllm.rehearsal_worker.RehearsalWorker"
_PATIENCE = "recovery_timeout"


class RehearsalEngine(VllmEngine):
    """A vLLM engine on the CPU whose steps can be made to fail, and that waits for an instruction then.

    Beside vLLM's own arguments it takes ``recovery_timeout``, its patience in seconds.
    """

    def _configure(self) -> Any:
        patience = self._arguments.pop(_PATIENCE, 120.0)
        self._arguments["worker_cls"] = WORKER
        config = super()._configure()
        parallel = config.parallel_config
        parallel.enable_fault_tolerance = True
        parallel.all2all_backend = "nixl_ep"
        parallel.fault_tolerance_config.engine_recovery_timeout_sec = patience
        return config
