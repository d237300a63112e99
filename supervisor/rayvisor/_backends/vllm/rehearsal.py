"""vLLM's own fault tolerance without the GPUs that it requires, and with injected faults: for rehearsals.

vLLM's fault tolerance requires data parallelism, a mixture of experts and a GPU. The code that handles a
fault needs none of them. So its switch is set after the arguments have been validated, and the wait for the
accelerator is replaced by one that returns immediately.
"""

from __future__ import annotations

from typing import Any

from rayvisor._backends.vllm.vllm_engine import VllmEngine

__all__ = ["FAULT_PLAN", "WORKER", "RehearsalEngine"]

WORKER = "rayvisor._backends.vllm.rehearsal_worker.RehearsalWorker"
FAULT_PLAN = "rehearsal"
"""The key of vLLM's ``additional_config`` under which the worker finds the faults to inject."""

_TOLERANCE_DEFAULTS = {"fault_tolerance": True, "recovery_timeout": 120.0}
_FAULT_DEFAULTS = {
    "compile_seconds": 0.0,
    "crash_on_prompt": "",
    "fail_start": "",
    "memory_bytes": 0,
    "prefill_seconds": 0.0,
    "raise_on_prompt": "",
    "retry": "recover",
}
_RETRY_OUTCOMES = ("recover", "fail", "ignore", "fault_again")


class RehearsalEngine(VllmEngine):
    """A vLLM engine on the CPU with injected faults, which waits for an instruction after each of them.

    It takes vLLM's own arguments, and these, most of which the simulated engine has as well:

    ========================  =====================================================================
    ``fault_tolerance``       whether it survives an exception in a step (default: True)
    ``recovery_timeout``      how long it waits for an instruction, in seconds (default: 120)
    ``retry``                 the outcome of the instruction: ``"recover"``, ``"fail"``, ``"ignore"``
                              (it is never answered) or ``"fault_again"`` (the next step fails)
    ``fail_start``            a message: loading the model raises it
    ``compile_seconds``       additional processor time for loading the model
    ``memory_bytes``          memory that a worker may still allocate when it loads the model
    ``prefill_seconds``       additional processor time of a step for each new prompt
    ``crash_on_prompt``       a text: a prompt that contains it kills the worker
    ``raise_on_prompt``       a text: a prompt that contains it raises in the worker
    ========================  =====================================================================
    """

    def _configure(self) -> Any:
        own = {
            name: self._arguments.pop(name, value)
            for name, value in {**_TOLERANCE_DEFAULTS, **_FAULT_DEFAULTS}.items()
        }
        if own["retry"] not in _RETRY_OUTCOMES:
            raise ValueError(
                f"retry must be one of {', '.join(map(repr, _RETRY_OUTCOMES))}, not {own['retry']!r}"
            )
        plan = {name: own[name] for name in _FAULT_DEFAULTS}
        self._arguments["worker_cls"] = WORKER
        self._arguments["additional_config"] = {
            **self._arguments.get("additional_config", {}),
            FAULT_PLAN: plan,
        }
        config = super()._configure()
        if own["fault_tolerance"]:
            parallel = config.parallel_config
            parallel.enable_fault_tolerance = True
            parallel.all2all_backend = "nixl_ep"
            parallel.fault_tolerance_config.engine_recovery_timeout_sec = own["recovery_timeout"]
        return config
