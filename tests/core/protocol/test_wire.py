"""The records of the protocol: no field is written and never read, and all of them travel."""

from __future__ import annotations

import ast
import dataclasses
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rayvisor
from rayvisor import faults, pool
from rayvisor._core.protocol import last_words, links, wire
from rayvisor.faults import Case, Cause, Evidence, FaultClass, Termination
from tests.core.protocol.usage import Usage

MODULES = (faults, wire, links, last_words)
FOR_USERS = {*rayvisor.__all__, *pool.__all__, "EngineInfo"}
"""Records whose fields their users read; `Supervisor.engine_info` returns an `EngineInfo`."""
CAUSES = (Cause("EngineDied", "it ended"), Cause("ProcessKilled", "by SIGKILL"))


def records(module: ModuleType) -> dict[str, type]:
    """Return the dataclasses and named tuples that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and (dataclasses.is_dataclass(value) or hasattr(value, "_fields"))
    }


RECORDS = {name: value for module in MODULES for name, value in records(module).items()}


def sources() -> list[ast.Module]:
    folder = Path(rayvisor.__file__).parent
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]


def is_for_users(field: str) -> bool:
    kind = RECORDS[field.partition(".")[0]]
    return any(name in FOR_USERS and issubclass(other, kind) for name, other in RECORDS.items())


def test_no_field_is_written_and_never_read_and_none_is_read_and_never_written() -> None:
    usage = Usage(sources(), RECORDS)
    assert set(usage.fields) == set(RECORDS)
    missing = usage.missing()
    assert [field for field in missing["never read"] if not is_for_users(field)] == []
    assert missing["never written"] == []


OTHER = """
class Died(NamedTuple):
    causes: tuple[str, ...]
    permanent: bool = False
    phase: str = ""
    signal: int = 0
    code: int = 0

class Exit(NamedTuple):
    permanent: bool

class Host:
    def __init__(self, died: Died) -> None:
        self.last = died

def describe() -> Died:
    return Died((), permanent=True, phase="serving")

async def use(exit_: Exit, host: Host, dead: Awaitable[Died]) -> None:
    assert exit_.permanent
    print(host.last.phase)
    print((await dead).causes)
    match describe():
        case Died(signal=9):
            print("killed")
"""


def test_a_field_is_not_taken_for_read_when_only_another_record_s_field_of_that_name_is() -> None:
    assert Usage([ast.parse(OTHER)], ["Died", "Exit"]).missing() == {
        "never read": ["Died.permanent", "Died.code"],
        "never written": ["Died.signal", "Died.code", "Exit.permanent"],
    }


@pytest.mark.parametrize("kind", [Evidence, Termination])
def test_every_fact_of_the_evidence_is_in_the_fault(kind: type[Evidence]) -> None:
    facts: dict[str, Any] = {
        "causes": CAUSES, "source": "engine", "traceback": "Traceback", "exit_code": 1, "signal": 9,
        "node": "10.0.0.7", "log_file": "engine.log", "phase": "serving",
    }  # fmt: skip
    assert set(facts) == {field.name for field in dataclasses.fields(Evidence)}
    fault = kind(**facts).as_fault(child="llm/1", incarnation=2, at=3.0, fault_class=FaultClass.FATAL)
    assert {name: getattr(fault, name) for name in facts} == facts
    assert (fault.child, fault.incarnation, fault.at, fault.fault_class) == ("llm/1", 2, 3.0, "FATAL")


@pytest.mark.parametrize(
    "flag",
    ["intended", "unavailable", "permanent", "lost", "overdue", "out_of_memory", "preempted", "node_died"],
)
def test_a_flag_of_a_termination_has_a_row_of_its_own_in_the_table(flag: str) -> None:
    facts: dict[str, Any] = {flag: True}
    case = Case(Termination(causes=(), **facts), starting=False, served=True)
    assert any(fits(case) for _, fits, _ in faults.RULES)


def test_what_travels_arrives_as_it_was_sent() -> None:
    termination = Termination(causes=CAUSES, signal=9, permanent=True, lost=True)
    chunks = [wire.Chunk(f"r{number}", 1, (1, 2, 3), "abc") for number in range(64)]
    items: list[wire.HostItem] = [
        *chunks, wire.Refused("r", 1, CAUSES), wire.Lost("r", 1, "abort"), wire.Phase(1, "loading", "", 0.5),
        wire.Terminated(1, termination), wire.Condition(1, "unhealthy", Evidence(causes=CAUSES)),
        wire.Suspicion(1, CAUSES), wire.Worked(1),
    ]  # fmt: skip
    sent = pickle.dumps(items, pickle.HIGHEST_PROTOCOL)
    assert pickle.loads(sent) == items
    for error in (
        links.HostGoneError("a", 1, termination),
        links.HostCallFailedError("x", CAUSES, "Traceback"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_batch_of_chunks_is_small() -> None:
    chunks = [wire.Chunk(f"r{number}", 1, (1, 2, 3), "abc") for number in range(64)]
    assert len(pickle.dumps(chunks, pickle.HIGHEST_PROTOCOL)) < 40 * len(chunks)
    assert issubclass(wire.Chunk, tuple)
