"""Root causes out of an engine's log."""

from __future__ import annotations

import signal

import pytest

from rayvisor._backends.host.log_reading import exit_code_of_worker, find_tracebacks, log_causes
from rayvisor._backends.vllm.launch import is_permanent, killed_during_start
from rayvisor.faults import Cause

LOG = """\
Triton is installed, but doesn't include CPU backend. Disabling Triton.
(EngineCore pid=11) INFO 11-21 11:16:23 [utils.py:347] Using LBHNC KV cache layout.
(Worker pid=12) ERROR 11-21 11:16:24 [multiproc_executor.py:9] Traceback (most recent call last):
(Worker pid=12) ERROR 11-21 11:16:24 [multiproc_executor.py:9]   File "attention.py", line 1, in forward
(EngineCore pid=11) ERROR 11-21 11:16:24 [core.py:1510] EngineCore encountered a fatal error.
(EngineCore pid=11) ERROR 11-21 11:16:24 [core.py:1510] Traceback (most recent call last):
(Worker pid=12) ERROR 11-21 11:16:24 [multiproc_executor.py:9]     raise kernels.Unsupported(head)
(Worker pid=12) ERROR 11-21 11:16:24 [multiproc_executor.py:9] kernels.Unsupported: head_dim=16: no kernel
(EngineCore pid=11) ERROR 11-21 11:16:24 [core.py:1510]   File "core.py", line 2, in run
(EngineCore pid=11) ERROR 11-21 11:16:24 [core.py:1510] RuntimeError: Worker failed with error 'head_dim=16'
(EngineCore pid=11) Traceback (most recent call last):
(EngineCore pid=11)   File "process.py", line 3, in _bootstrap
(EngineCore pid=11) RuntimeError: Worker failed with error 'head_dim=16'
"""

CHAINED = """\
Traceback (most recent call last):
  File "a.py", line 1, in read
    return json.loads(text)
           ^^^^^^^^^^^^^^^^
KeyError

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 1, in load
ValueError: no config
some line that follows
"""


def test_the_process_that_failed_first_has_the_root_cause_though_lines_interleave() -> None:
    causes, traceback = log_causes(LOG)
    assert causes == (
        Cause("RuntimeError", "Worker failed with error 'head_dim=16'"),
        Cause("Unsupported", "head_dim=16: no kernel"),
    )
    assert traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "attention.py", line 1, in forward',
        "    raise kernels.Unsupported(head)",
        "kernels.Unsupported: head_dim=16: no kernel",
    ]


def test_of_chained_exceptions_the_first_printed_is_the_root_cause() -> None:
    assert log_causes(CHAINED)[0] == (Cause("ValueError", "no config"), Cause("KeyError", ""))
    assert [found.type for found in find_tracebacks(CHAINED)] == ["KeyError", "ValueError"]


def test_processes_that_are_being_ended_name_no_cause() -> None:
    log = "Traceback (most recent call last):\n  File\nKeyboardInterrupt\n"
    assert log_causes(log) == ((), "")


def test_a_traceback_that_is_cut_off_is_no_cause() -> None:
    assert log_causes("Traceback (most recent call last):\n  File x\n") == ((), "")


def test_the_exit_code_of_a_worker_is_read_where_vllm_knows_it() -> None:
    line = (
        "ERROR [m.py:3] Worker proc VllmWorker-0 died unexpectedly (exit code: {}), shutting down executor."
    )
    assert exit_code_of_worker(line.format(-9)) == -9
    assert exit_code_of_worker(line.format(None)) is None
    assert exit_code_of_worker("") is None


def test_a_core_that_vllm_saw_killed_before_it_was_seen_here_is_the_root_cause() -> None:
    said = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert killed_during_start(RuntimeError(said.format({"EngineCore_DP1": -9}))) == (
        Cause("ProcessKilled", "EngineCore_DP1 was ended by SIGKILL"),
        signal.SIGKILL,
    )
    assert killed_during_start(RuntimeError(said.format({"EngineCore": 1}))) is None
    assert killed_during_start(RuntimeError(said.format({}))) is None


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (ValueError("max_model_len must be positive"), True),
        (NotImplementedError("no such quantization"), True),
        (ImportError("libtorch.so: failed to map segment: Cannot allocate memory"), False),
        (RuntimeError("Engine core initialization failed"), False),
        (caused_by(ValueError("Invalid repository ID"), ConnectionError("hub")), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_only_what_is_wrong_with_the_configuration_of_vllm_is_permanent(
    error: Exception, *, permanent: bool
) -> None:
    assert is_permanent(error) is permanent


def test_a_validation_error_says_what_is_wrong_in_its_second_line() -> None:
    log = (
        "Traceback (most recent call last):\n  File x\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, no such model: '/models/x'.\nPlease verify the following:\n"
    )
    cause = Cause(
        "ValidationError",
        "1 validation error for ModelConfig: Value error, no such model: '/models/x'.",
    )
    causes, traceback = log_causes(log)
    assert causes == (cause,)
    assert traceback.splitlines()[-1] == "  Value error, no such model: '/models/x'."
