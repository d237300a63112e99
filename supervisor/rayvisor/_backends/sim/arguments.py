"""Arguments of the simulated engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DEFAULTS", "RETRIES", "check_arguments"]

RETRIES = ("recover", "fail", "ignore", "fault_again")
"""What becomes of an instruction to retry."""

DEFAULTS: Mapping[str, Any] = {
    "model": "sim",
    "max_model_len": 4096,
    "max_num_seqs": 32,
    "tokens_per_second": 200.0,
    "seed": 0,
    "start_delay": 0.0,
    "fail_start": None,
    "die_during_start": None,
    "crash_on_prompt": None,
    "raise_on_prompt": None,
    "lose_on_prompt": None,
    "compile_seconds": 0.0,
    "prefill_seconds": 0.0,
    "block_on_prompt": None,
    "hold_gil_on_prompt": None,
    "fault_tolerance": False,
    "recovery_timeout": 120.0,
    "retry": "recover",
}
"""Arguments of the simulated engine.

``tokens_per_second`` is per request, 0 as fast as it goes; ``seed`` makes another model. The rest asks
for faults: ``fail_start`` (a message: the start raises), ``die_during_start`` (``"core"`` or
``"worker"``), and texts that, when a prompt holds them, kill the core (``crash_on_prompt``), raise in it
(``raise_on_prompt``) or end the request unasked (``lose_on_prompt``).

What takes long and is no fault: ``start_delay``, a start that does nothing for so long;
``compile_seconds`` of processor time at the start; ``prefill_seconds`` of processor time for each prompt.
What never ends: texts that block the host's event loop (``block_on_prompt``), or hold its interpreter in
native code as well (``hold_gil_on_prompt``), both for hosts with a process of their own; and the worker on
SIGUSR1, which then sleeps in the midst of a step, or SIGUSR2, which computes.

On SIGUSR1 the core has the worker raise in its next step. As with vLLM, an engine without
``fault_tolerance`` dies of that, or of anything that raises in a step. With it, it ends its requests unasked,
says that it is unhealthy, and waits ``recovery_timeout`` seconds for an instruction before it dies; when its
worker is gone, or on SIGUSR2, it says that it is dead, and waits as long. ``retry`` is what the instruction
"retry" leads to: ``"recover"``, ``"fail"``, ``"ignore"`` (it is never answered), or ``"fault_again"``.
"""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Find out what is wrong with arguments.

    Raises
    ------
    TypeError
        There is no such argument; the message names it.
    ValueError
        A value that cannot be.
    """
    for name in given:
        if name not in DEFAULTS:
            raise TypeError(f"SimEngine got an unexpected argument {name!r}")
    arguments = {**DEFAULTS, **given}
    for name in ("max_model_len", "max_num_seqs"):
        value = arguments[name]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    if arguments["die_during_start"] not in (None, "core", "worker"):
        raise ValueError("die_during_start must be 'core' or 'worker'")
    if arguments["retry"] not in RETRIES:
        raise ValueError(f"retry must be one of {', '.join(map(repr, RETRIES))}, not {arguments['retry']!r}")
    model = str(arguments["model"])
    if model.startswith(("/", "./", "../")) and not Path(model).exists():
        raise ValueError(f"model: {model} does not exist")
