"""A vLLM worker with injected faults. vLLM loads it by name, in the worker's own process."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.worker.cpu_worker import CPUWorker

from rayvisor._backends.vllm.rehearsal import FAULT_PLAN

__all__ = ["RehearsalWorker"]


class RehearsalWorker(CPUWorker):  # type: ignore[misc]  # vLLM is not typed
    """A CPU worker with the faults of its plan; see ``RehearsalEngine``."""

    _armed = ""
    _hangs = False

    @property
    def _plan(self) -> Mapping[str, Any]:
        plan: Mapping[str, Any] = (self.vllm_config.additional_config or {}).get(FAULT_PLAN, {})
        return plan

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, with the faults of a start."""
        _compute(self._plan.get("compile_seconds", 0.0))
        if self._plan.get("memory_bytes"):
            most = _virtual_memory() + self._plan["memory_bytes"]
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if self._plan.get("fail_start"):
            raise RuntimeError(self._plan["fail_start"])
        super().load_model(*args, **kwargs)
        self._original_execute_model = self.model_runner.execute_model
        self.model_runner.execute_model = self._execute_with_faults

    def arm(self, message: str) -> None:
        """Make the next step raise, once."""
        self._armed = message

    def hang(self) -> None:
        """Make the next step never return."""
        self._hangs = True

    def handle_ft_command(self, ft_request: Any) -> Any:
        """Handle an instruction as on a GPU, but without the wait for an accelerator."""
        outcome = self._plan.get("retry")
        if outcome == "fail":
            raise RuntimeError("the collective failed")
        while outcome == "ignore":
            time.sleep(60.0)
        torch.accelerator.synchronize = lambda *_: None
        answer = super().handle_ft_command(ft_request)
        if outcome == "fault_again":
            self.arm("a step after the retry was asked to fail")
        return answer

    def _execute_with_faults(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a step of the model, with the faults of the plan."""
        while self._hangs:
            time.sleep(60.0)
        if self._armed:
            message, self._armed = self._armed, ""
            raise RuntimeError(message)
        for new in scheduled.scheduled_new_reqs:
            _compute(self._plan.get("prefill_seconds", 0.0))
            self._fail_on_prompt(new.prompt_token_ids or [])
        return self._original_execute_model(scheduled, *args, **kwargs)

    def _fail_on_prompt(self, tokens: list[int]) -> None:
        crash, error = self._plan.get("crash_on_prompt"), self._plan.get("raise_on_prompt")
        if not crash and not error:
            return
        text = cached_tokenizer_from_config(self.model_config).decode(tokens)
        if crash and crash in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if error and error in text:
            raise RuntimeError(f"the model cannot take {error!r}")


def _compute(seconds: float) -> None:
    """Use this many seconds of processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def _virtual_memory() -> int:
    """Return the virtual memory of this process, in bytes."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * resource.getpagesize()
