"""The life of a server, the same for the simulated one and for the real ``vllm serve``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._process.tree import alive
from rayvisor.testing import wait_for_state
from tests.engine.driving import REAL
from tests.server.asking import complete

BACK_SECONDS = 280.0


@pytest.fixture(params=["sim", REAL])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, request: pytest.FixtureRequest) -> str:
    return "sim" if kind == "sim" else str(request.getfixturevalue("random_model"))


def tree(kind: str, model: str, **options: Any) -> rv.Supervisor:
    arguments: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 8}
    if kind == "vllm":
        arguments |= {"dtype": "float32", "enforce_eager": True}
    web = rv.server("web", model=model, engine=kind, engine_args=arguments, **options)
    return rv.Supervisor(rv.SupervisorSpec(intensity=3, period=900.0, children=[web]), local=True)


async def test_a_killed_engine_core_is_followed_by_a_server_at_the_same_place_and_a_stop_leaves_nothing(
    kind: str, model: str
) -> None:
    async with tree(kind, model) as sup:
        watch = sup.watch()
        url = await sup["web"].serving(BACK_SECONDS)
        assert await complete(url, model) == 8
        assert sup.status("web").url == url
        first = sup.processes("web")
        core = next(process for _, process in first if "EngineCore" in process.name)
        os.kill(core.pid, signal.SIGKILL)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, within=BACK_SECONDS)
        assert not [process for _, process in first if alive(process)]
        assert sup["web"].url == url
        assert await complete(url, model) == 8
        second = sup.processes("web")
        assert {"APIServer", "EngineCore", "Worker"} <= {p.name.rpartition("::")[2] for _, p in second}
    assert not [process for _, process in second if alive(process)]
    faults = [record.fault for record in watch.rest() if isinstance(record, r.FaultSeen)]
    assert [str(fault.root) for fault in faults] == [
        f"ProcessKilled: EngineCore (pid {core.pid}) was ended by SIGKILL"
    ]
    assert faults[0].fault_class is rv.FaultClass.FATAL
    assert faults[0].log_file


async def test_a_model_that_is_not_there_is_a_permanent_fault_with_its_cause(
    kind: str, tmp_path: Path
) -> None:
    sup = tree(kind, str(tmp_path))
    watch = sup.watch()
    with pytest.raises(rv.StartFailed, match=r"config|[Mm]odel"):
        async with sup:
            pass
    (fault,) = (record.fault for record in watch.rest() if isinstance(record, r.FaultSeen))
    assert fault.fault_class is rv.FaultClass.PERMANENT
    assert fault.root.type in {"OSError", "ValueError", "ValidationError"}
    assert fault.log_file
