"""A worker of vLLM's whose next step can be made to fail. Loaded by name, in the worker's own process."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

__all__ = ["RehearsalWorker"]


class RehearsalWorker(CPUWorker):  # type: ignore[misc]  # vLLM is not typed
    """One exception in the model's step, when it has been asked for."""

    def arm(self, message: str) -> None:
        """Have the next step raise, once."""
        step = self.model_runner.execute_model

        def failing(*_: Any, **__: Any) -> Any:
            self.model_runner.execute_model = step
            raise RuntimeError(message)

        self.model_runner.execute_model = failing

    def handle_ft_command(self, ft_request: Any) -> Any:
        """As on a GPU, but for waiting for the accelerator, which there is none of."""
        torch.accelerator.synchronize = lambda *_: None
        return super().handle_ft_command(ft_request)
