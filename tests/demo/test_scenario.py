"""The faults that the demo injects, and how the reported fault is matched."""

from __future__ import annotations

import pytest

from rayvisor.demo.scenario import FAULTS, injection
from rayvisor.faults import Cause, Fault, FaultClass

FOUND = {
    "kill-core": Cause("ProcessKilled", "EngineCore (pid 71) was ended by SIGKILL"),
    "kill-worker": Cause("ProcessKilled", "Worker (pid 72) was ended by SIGKILL"),
    "kill-host": Cause("ProcessKilled", "the host (pid 70) was ended by SIGKILL"),
    "stop-core": Cause("ProcessStopped", "EngineCore (pid 71) is stopped (SIGSTOP)"),
    "stop-worker": Cause("ProcessStopped", "Worker (pid 72) is stopped (SIGSTOP)"),
    "stop-host": Cause("ProcessStopped", "the host (pid 70) is stopped (SIGSTOP)"),
    "endless-step": Cause(
        "EngineStalled", "no token for 5.0 s with 4 requests queued; Worker (pid 72) sleeps"
    ),
}


def fault(root: Cause, fault_class: FaultClass = FaultClass.FATAL) -> Fault:
    causes = (Cause("EngineDied", "consequence"), root)
    return Fault(
        child="llm/1", incarnation=1, at=0.0, source="engine", fault_class=fault_class, causes=causes
    )


@pytest.mark.parametrize("name", [name for name, known in FAULTS.items() if known is not None])
def test_a_fault_is_found_by_its_class_and_its_root_cause_and_by_no_other(name: str) -> None:
    wanted = injection(name)
    assert wanted is not None
    assert [other for other, root in FOUND.items() if wanted.found(fault(root))] == [name]
    assert not wanted.found(fault(FOUND[name], FaultClass.PERMANENT))
