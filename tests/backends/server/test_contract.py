"""The lifecycle of a server, the same for the simulated one and for the real ``vllm serve``."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.process.identity import alive
from rayvisor.testing import wait_for_state
from tests.backends.driving import REAL
from tests.backends.server.http_client import complete, post
from tests.real.serving_rig import install

SECONDS = 280.0
"""More than a real server takes to start, even on a busy machine."""


class Kind(NamedTuple):
    """A kind of server with fault tolerance."""

    engine: str
    model: str
    arguments: Mapping[str, Any]
    env: Mapping[str, str]
    arm: Callable[[rv.Supervisor], object]
    """Makes the next step of the model raise."""

    def tree(self, **options: Any) -> rv.Supervisor:
        given = {"model": self.model, "engine_args": self.arguments, "env": self.env, **options}
        spec = rv.server("web", engine=self.engine, **given)
        return rv.Supervisor(rv.SupervisorSpec(intensity=3, period=900.0, children=[spec]), local=True)


@pytest.fixture(params=["sim", REAL])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    common = {"max_model_len": 256, "max_num_seqs": 8}
    if request.param == "sim":
        return Kind("sim", "sim", {**common, "fault_tolerance": True}, {}, _signal)
    arguments = {
        **common,
        "dtype": "float32",
        "enforce_eager": True,
        "enable_fault_tolerance": True,
        "worker_cls": "rayvisor._backends.vllm.rehearsal_worker.RehearsalWorker",
    }
    env = {**install(tmp_path / "plugin"), "VLLM_SERVER_DEV_MODE": "1"}
    return Kind("vllm", str(request.getfixturevalue("random_model")), arguments, env, _call)


def _signal(sup: rv.Supervisor) -> None:
    os.kill(pid_of(sup, "EngineCore"), signal.SIGUSR1)


def _call(sup: rv.Supervisor) -> None:
    post(sup["web"].url, "/collective_rpc", {"method": "arm", "args": ["the step was made to fail"]})


def pid_of(sup: rv.Supervisor, name: str) -> int:
    return next(process.pid for _, process in sup.processes("web") if name in process.name)


async def until_recovered(watch: Any) -> list[rv.Fault]:
    """Wait for a recovery in place. Return the faults before it."""
    faults: list[rv.Fault] = []
    with anyio.fail_after(SECONDS):
        async for record in watch:
            if isinstance(record, r.FaultSeen):
                faults.append(record.fault)
            if isinstance(record, r.StateChanged) and record.event == "recovered":
                break
    return faults


async def test_a_fault_is_recovered_from_in_place_a_death_by_a_restart_and_a_stop_leaves_nothing(
    kind: Kind,
) -> None:
    async with kind.tree() as sup:
        watch = sup.watch()
        url = await sup["web"].serving(SECONDS)
        assert await complete(url, kind.model) == 8
        assert sup.status("web").url == url

        await anyio.to_thread.run_sync(kind.arm, sup)
        assert await complete(url, kind.model) < 8  # that request is what the fault costs
        (fault,) = await until_recovered(watch)
        assert fault.fault_class is rv.FaultClass.RECOVERABLE
        assert (fault.root.type, "fail" in fault.root.message) == ("RuntimeError", True)
        assert await complete(await sup["web"].serving(SECONDS), kind.model) == 8
        assert sup.status("web").incarnation == 1

        first = sup.processes("web")
        core = pid_of(sup, "EngineCore")
        os.kill(core, signal.SIGKILL)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=SECONDS)
        assert not [process for _, process in first if alive(process)]
        assert sup["web"].url == url
        assert await complete(url, kind.model) == 8
        second = sup.processes("web")
        assert {"APIServer", "EngineCore", "Worker"} <= {p.name.rpartition("::")[2] for _, p in second}
    assert not [process for _, process in second if alive(process)]
    (fault,) = (record.fault for record in watch.rest() if isinstance(record, r.FaultSeen))
    assert fault.fault_class is rv.FaultClass.FATAL
    assert str(fault.root) == f"ProcessKilled: EngineCore (pid {core}) was ended by SIGKILL"
    assert fault.log_file


# For the real one it is a row of `make faults`, since it takes a whole start.
@pytest.mark.parametrize("kind", ["sim"], indirect=True)
async def test_a_model_that_is_not_there_is_a_permanent_fault_with_its_cause(
    kind: Kind, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    sup = kind.tree(model=str(tmp_path / "empty"))
    watch = sup.watch()
    with pytest.raises(rv.StartFailedError, match=r"config|[Mm]odel"):
        async with sup:
            pass
    (fault,) = (record.fault for record in watch.rest() if isinstance(record, r.FaultSeen))
    assert fault.fault_class is rv.FaultClass.PERMANENT
    assert fault.root.type in {"OSError", "ValueError", "ValidationError"}
    assert str(tmp_path / "empty") in fault.root.message
    assert fault.log_file
