"""Actors of a real Ray that end themselves: restarted, their work done again, their last words read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

import rayvisor as rv
from rayvisor.records import FaultSeen

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]


def engine_class(name: str, limit: int = 16) -> type:
    class DeadError(Exception):
        pass

    @rv.fatal(DeadError, name=name, limit=limit)
    class Engine:
        def __init__(self, incarnations: Path) -> None:
            self.broken = False
            with incarnations.open("a", encoding="utf-8") as file:
                file.write(".")
            self.number = incarnations.stat().st_size

        def answer(self, dies: int) -> list[Any]:
            """Die in the first incarnations, then say why."""
            if self.number <= dies:
                raise RuntimeError("batch failed") from DeadError(f"engine {self.number}")
            why = [words.causes[-1].message for words in rv.last_words(name)]
            return [self.number, why, os.getpid()]

        async def later(self) -> None:
            raise DeadError("async")

    return Engine


def test_the_call_is_done_again_by_the_next_incarnation_which_knows_why_it_is_there(tmp_path: Path) -> None:
    name = "restarted"
    make: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(engine_class(name))
    actor = make.remote(tmp_path / "incarnations")
    number, why, pid = ray.get(actor.answer.remote(2), timeout=90)
    assert (number, why) == (3, ["engine 1", "engine 2"])
    crashes = rv.last_words(name)  # the driver reads them, too
    assert len({words.pid for words in crashes} - {pid}) == 2
    assert {words.actor_id for words in crashes} == {actor._actor_id.hex()}
    assert [cause.type for cause in crashes[0].causes] == ["RuntimeError", "DeadError"]
    assert 'raise RuntimeError("batch failed")' in crashes[0].traceback
    ray.kill(actor)


async def test_a_supervisor_is_told_the_root_cause_of_an_actor_that_ended_itself(tmp_path: Path) -> None:
    engine = rv.actor("engine", engine_class("supervised"), args=[tmp_path / "incarnations"], num_cpus=0)
    spec = rv.SupervisorSpec(intensity=3, period=60.0, children=[engine])
    async with rv.Supervisor(spec, handle_signals=False) as sup:
        watch = sup.watch()
        with pytest.raises(rv.ChildUnavailableError):
            await sup["engine"].options(timeout=60.0).call("answer", 1)
        answered = await sup["engine"].options(idempotent=True, timeout=60.0).call("answer", 1)
        assert answered[0] == 2
    (fault,) = [record.fault async for record in watch if isinstance(record, FaultSeen)]
    assert fault.root == rv.Cause("DeadError", "engine 1")
    assert (fault.fault_class, fault.exit_code) == (rv.FaultClass.FATAL, 1)
    assert 'raise RuntimeError("batch failed")' in fault.traceback


def test_an_asynchronous_actor_too_and_no_more_often_than_the_limit_says(tmp_path: Path) -> None:
    name = "limited"
    make: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(engine_class(name, limit=1))
    incarnations = tmp_path / "incarnations"
    actor = make.remote(incarnations)
    with pytest.raises(ray.exceptions.RayTaskError, match="async"):
        ray.get(actor.later.remote(), timeout=90)
    assert (len(rv.last_words(name)), incarnations.stat().st_size) == (1, 2)
    ray.kill(actor)
