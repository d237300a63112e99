"""Every row of the fault matrix on simulated engines and plain actors; `make faults` runs the real ones."""

from __future__ import annotations

import pytest

from benchmarks.faults.actors import ACTOR_ROWS
from benchmarks.faults.command import ROWS, run
from benchmarks.faults.engines import ENGINE_ROWS
from benchmarks.faults.rows import Row
from benchmarks.faults.servers import SERVER_ROWS
from benchmarks.faults.trial import Observed, new_mark
from rayvisor.demo.scenario import FAULTS
from rayvisor.faults import FaultClass

ALONE = [row for row in (*ENGINE_ROWS, *SERVER_ROWS) if row.only in {"", "sim"} and not row.host]
ON_RAY = [row for row in (*ENGINE_ROWS, *ACTOR_ROWS) if row.only in {"", "sim"} and row.host]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", ALONE, ids=[row.name for row in ALONE])
async def test_what_is_found_and_done_about_an_engine_s_fault_is_what_should_be(row: Row) -> None:
    found = await run(row, "sim", new_mark(), local=True)
    assert not row.deviations(found)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster_address")
@pytest.mark.parametrize("row", ON_RAY, ids=[row.name for row in ON_RAY])
async def test_what_is_found_and_done_about_a_host_s_or_actor_s_fault_is_what_should_be(row: Row) -> None:
    found = await run(row, "sim", new_mark())
    assert not row.deviations(found)


def test_names_of_rows_are_their_own() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


def test_every_fault_of_the_demo_is_in_the_matrix() -> None:
    names = {row.name.lower().replace(" ", "-").replace("enginecore", "core") for row in ROWS}
    assert set(FAULTS) - {"none"} <= names


def test_a_row_says_everything_that_is_off() -> None:
    row = Row("x", FaultClass.FATAL, "^Killed", "restart", run=lambda _: play_nothing())
    assert not row.deviations(Observed(fault_class=FaultClass.FATAL, root="Killed: by 9", response="restart"))
    wrong = Observed(FaultClass.TRANSIENT, "Other", "wait", lost=1, left=["a"], problem="it broke")
    assert row.deviations(wrong) == (
        "it broke; class TRANSIENT instead of FATAL; root cause 'Other'; 'wait' instead of 'restart'; "
        "1 requests lost; left over: a"
    )


async def play_nothing() -> None: ...
