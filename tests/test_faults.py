from __future__ import annotations

from typing import Any

import pytest

from rayvisor import faults as module
from rayvisor.faults import Cause, Ending, FaultClass, classify

WRONG = Cause("ValueError", "max_model_len must be positive")


def ending(*causes: Cause, **facts: Any) -> Ending:
    return Ending(causes=causes or (WRONG,), **facts)


@pytest.mark.parametrize(
    ("what", "starting", "served", "expected"),
    [
        (ending(), True, False, FaultClass.PERMANENT),
        (ending(), True, True, FaultClass.FATAL),
        (ending(), False, True, FaultClass.FATAL),
        (ending(intended=True), False, True, FaultClass.INTENDED),
        (ending(unavailable=True), False, True, FaultClass.TRANSIENT),
        (ending(Cause("OutOfMemoryError", "CUDA out of memory")), True, False, FaultClass.FATAL),
        (ending(Cause("MemoryError", ""), Cause("RuntimeError", "no")), True, False, FaultClass.FATAL),
        (ending(out_of_memory=True), True, False, FaultClass.FATAL),
        (ending(signal=9), True, False, FaultClass.FATAL),
        (ending(preempted=True), True, False, FaultClass.FATAL),
        (ending(lost=True), True, False, FaultClass.FATAL),
        (ending(overdue=True), True, False, FaultClass.FATAL),
        (ending(Cause("ConnectionResetError", "")), True, False, FaultClass.FATAL),
        (
            ending(Cause("RuntimeEnvSetupError", "no such package"), lost=True),
            True,
            False,
            FaultClass.PERMANENT,
        ),
        (ending(Cause("RuntimeEnvSetupError", "no such package"), lost=True), True, True, FaultClass.FATAL),
    ],
)
def test_the_class_follows_the_innermost_cause_then_the_history(
    what: Ending, *, starting: bool, served: bool, expected: FaultClass
) -> None:
    assert classify(what, starting=starting, served=served) is expected


def test_an_end_without_a_cause_says_so() -> None:
    assert str(Ending(causes=()).root) == "UnknownEnd: no cause was reported"


def test_the_table_can_be_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ("a licence server", lambda case: case.ending.root.type == "LicenceError", FaultClass.FATAL)
    monkeypatch.setattr(module, "RULES", [rule, *module.RULES])
    assert classify(ending(Cause("LicenceError", "")), starting=True) is FaultClass.FATAL
