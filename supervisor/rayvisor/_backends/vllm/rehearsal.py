"""vLLM's own fault tolerance without the GPUs that it asks for, and faults on request: for rehearsals.

vLLM wants data parallelism, a mixture of experts and a GPU for its fault tolerance. The code that handles a
fault needs none of them: so its switch is set after the arguments have been checked, and what waits for the
accelerator waits for none.
"""

from __future__ import annotations

from typing import Any

from rayvisor._backends.vllm.vllm_engine import VllmEngine

__all__ = ["FAULT_PLAN", "WORKER", "RehearsalEngine"]

WORKER = "rayvisor._backends.vllm.rehearsal_worker.RehearsalWorker"
FAULT_PLAN = "rehearsal"
"""Where in vLLM's ``additional_config`` the worker finds what it is to rehearse."""

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
    """A vLLM engine on the CPU whose steps can be made to fail, and that waits for an instruction then.

    Beside vLLM's own arguments it takes these, most of which the simulated engine has as well:

    ========================  =====================================================================
    ``fault_tolerance``       whether it outlives an exception in a step (default: it does)
    ``recovery_timeout``      its patience, in seconds (default 120)
    ``retry``                 what the instruction leads to: ``"recover"``, ``"fail"``, ``"ignore"``
                              (it is never answered) or ``"fault_again"`` (so does the next step)
    ``fail_start``            a message: loading the model raises it
    ``compile_seconds``       processor time that loading takes longer
    ``memory_bytes``          as much memory as a worker may still ask for when it loads the model
    ``prefill_seconds``       processor time that a step takes longer for each new prompt
    ``crash_on_prompt``       a text: a prompt that holds it kills the worker
    ``raise_on_prompt``       a text: a prompt that holds it raises in the worker
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
