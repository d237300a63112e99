"""Arguments of the simulated engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DEFAULTS", "RETRY_OUTCOMES", "check_arguments"]

RETRY_OUTCOMES = ("recover", "fail", "ignore", "fault_again")
"""Possible outcomes of the instruction "retry"."""

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

``tokens_per_second`` is the speed of each request, 0 for no limit. Another ``seed`` is another model. The
other arguments inject faults:

- ``fail_start``: a message; the start raises it.
- ``die_during_start``: ``"core"`` or ``"worker"``.
- ``crash_on_prompt``, ``raise_on_prompt``, ``lose_on_prompt``: a prompt that contains this text kills the
  core, raises in it, or has its request ended by the engine itself.

These slow the engine down and are no faults: ``start_delay``, seconds for which the start does nothing;
``compile_seconds`` of processor time at the start; ``prefill_seconds`` of processor time for each prompt.

These hang it. A prompt that contains ``block_on_prompt`` blocks the host's event loop; one that contains
``hold_gil_on_prompt`` also keeps the interpreter lock. Both need a host with a process of its own. On SIGUSR1
the worker sleeps forever within a step, on SIGUSR2 it computes forever.

On SIGUSR1 the core makes the worker raise in its next step. As with vLLM, an engine without
``fault_tolerance`` dies of that, and of any other exception in a step. With fault tolerance it ends its
requests, reports that it is unhealthy, and waits ``recovery_timeout`` seconds for an instruction before it
dies. When its worker has gone, or on SIGUSR2, it reports that it is dead, and waits as long. ``retry`` is the
outcome of the instruction "retry": ``"recover"``, ``"fail"``, ``"ignore"`` (it is never answered), or
``"fault_again"``.
"""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Validate the arguments.

    Raises
    ------
    TypeError
        There is no such argument; the message names it.
    ValueError
        A value is not valid; the message names its argument.
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
    if arguments["retry"] not in RETRY_OUTCOMES:
        raise ValueError(
            f"retry must be one of {', '.join(map(repr, RETRY_OUTCOMES))}, not {arguments['retry']!r}"
        )
    model = str(arguments["model"])
    if model.startswith(("/", "./", "../")) and not Path(model).exists():
        raise ValueError(f"model: {model} does not exist")
