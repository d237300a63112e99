from __future__ import annotations

from typing import Any

import pytest

from rayvisor import faults as module
from rayvisor.faults import Cause, FaultClass, Termination, classify

WRONG = Cause("ValueError", "max_model_len must be positive")


def termination(*causes: Cause, **facts: Any) -> Termination:
    return Termination(causes=causes or (WRONG,), **facts)


@pytest.mark.parametrize(
    ("what", "starting", "served", "expected"),
    [
        (termination(), True, False, FaultClass.PERMANENT),
        (termination(), True, True, FaultClass.FATAL),
        (termination(), False, True, FaultClass.FATAL),
        (termination(intended=True), False, True, FaultClass.INTENDED),
        (termination(permanent=True), True, True, FaultClass.PERMANENT),
        (termination(permanent=True), False, True, FaultClass.PERMANENT),
        (termination(permanent=True, signal=9, lost=True, overdue=True), True, True, FaultClass.PERMANENT),
        (termination(permanent=True, out_of_memory=True), False, True, FaultClass.PERMANENT),
        (termination(node_died=True), True, False, FaultClass.FATAL),
        (termination(unavailable=True), False, True, FaultClass.TRANSIENT),
        (termination(Cause("OutOfMemoryError", "CUDA out of memory")), True, False, FaultClass.FATAL),
        (termination(Cause("MemoryError", ""), Cause("RuntimeError", "no")), True, False, FaultClass.FATAL),
        (termination(out_of_memory=True), True, False, FaultClass.FATAL),
        (termination(signal=9), True, False, FaultClass.FATAL),
        (termination(preempted=True), True, False, FaultClass.FATAL),
        (termination(lost=True), True, False, FaultClass.FATAL),
        (termination(overdue=True), True, False, FaultClass.FATAL),
        (termination(Cause("ConnectionResetError", "")), True, False, FaultClass.FATAL),
        (
            termination(Cause("RuntimeEnvSetupError", "no such package"), lost=True),
            True,
            False,
            FaultClass.PERMANENT,
        ),
        (
            termination(Cause("RuntimeEnvSetupError", "no such package"), lost=True),
            True,
            True,
            FaultClass.FATAL,
        ),
    ],
)
def test_the_class_follows_the_innermost_cause_then_the_history(
    what: Termination, *, starting: bool, served: bool, expected: FaultClass
) -> None:
    assert classify(what, starting=starting, served=served) is expected


def test_an_end_without_a_cause_says_so() -> None:
    assert str(Termination(causes=()).root) == "UnknownError: no cause was reported"


def test_the_table_can_be_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ("a licence server", lambda case: case.termination.root.type == "LicenceError", FaultClass.FATAL)
    monkeypatch.setattr(module, "RULES", [rule, *module.RULES])
    assert classify(termination(Cause("LicenceError", "")), starting=True) is FaultClass.FATAL
