from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import psutil
import pytest
from ray.exceptions import ActorUnavailableError

from rayvisor._backends.process.identity import alive
from rayvisor._backends.process.tree import marked
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout, WorkerPackageError
from rayvisor._backends.ray.host_factory import RayHostFactory
from rayvisor._backends.ray.hosts import RayHost
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._core.protocol.wire import EngineInfo, ProcessId
from rayvisor.faults import Termination
from rayvisor.specs import ActorOptions, NodePin
from rayvisor.timeouts import ProcessTimeouts, Timeouts

pytestmark = pytest.mark.ray

PLAIN = ActorOptions()


async def started(host: RayHost) -> EngineInfo:
    info = await host.ensure_started(1, {}, 90)
    assert isinstance(info, EngineInfo)
    return info


async def until_gone(*processes: ProcessId, seconds: float = 60.0) -> None:
    with anyio.fail_after(seconds):
        while any(alive(process) for process in processes):  # noqa: ASYNC110 - other processes' doing
            await anyio.sleep(0.01)


async def test_a_host_that_ray_loses_sight_of_while_it_comes_up_is_asked_again_and_made_once(
    factory: RayHostFactory,
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    real = host._actor
    missed: list[str] = []

    class Unlucky:
        """Ray cannot reach the actor the first two times that either method is called."""

        def __init__(self, name: str) -> None:
            self.name = name

        def remote(self, *args: Any) -> Any:
            if missed.count(self.name) < 2:
                missed.append(self.name)
                return self.fail()
            return getattr(real, self.name).remote(*args)

        async def fail(self) -> None:
            raise ActorUnavailableError("the peer missed a heartbeat", None)

    host._actor = SimpleNamespace(describe=Unlucky("describe"), call=Unlucky("call"))
    assert (await started(host)).processes
    assert missed == ["describe"] * 2 + ["call"] * 2
    host._actor = real
    pid = (await host.ready(90)).process.pid
    await host.end(30)
    assert marked(host.key) == ()
    assert pid != os.getpid()


async def test_the_sigkill_of_a_host_is_known_at_once_with_its_cause(factory: RayHostFactory) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    description = await host.ready(90)
    assert description.process.pid != os.getpid()
    os.kill(description.process.pid, signal.SIGKILL)
    with anyio.fail_after(30):
        end = await host.ended()
    assert end.root.type == "SYSTEM_ERROR"
    assert "Worker unexpectedly exits" in end.root.message
    assert not end.intended
    assert not end.unavailable
    assert end.log_file.endswith(".err")
    assert await host.ended() == end


async def test_the_end_of_a_host_with_an_engine_is_reported_by_its_node_first(
    factory: RayHostFactory,
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    await started(host)
    pid = (await host.ready(90)).process.pid
    waiting = [asyncio.create_task(host.ended()) for _ in range(2)]
    os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(30):
        await asyncio.shield(host._reported)  # Ray's own report comes too; the first one counts
        ends = await asyncio.gather(*waiting)
    assert host._reported.result().root.message == f"the host (pid {pid}) was ended by SIGKILL"
    assert host._reported.result().signal == signal.SIGKILL
    assert ends[0] == ends[1]
    assert not ends[0].intended
    assert not ends[0].unavailable


async def test_without_a_node_agent_rays_report_of_a_hosts_end_is_enough(factory: RayHostFactory) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    await started(host)
    os.kill(await factory.agents.pid(host.node_id), signal.SIGKILL)
    assert host._process_watch is not None
    await asyncio.wait([host._process_watch], timeout=60)
    assert not host._reported.done()
    os.kill((await host.ready(90)).process.pid, signal.SIGKILL)
    with anyio.fail_after(30):
        assert (await host.ended()).root.type == "SYSTEM_ERROR"


async def test_a_killed_hosts_process_tree_is_gone_within_seconds_though_it_is_stopped(
    factory: RayHostFactory,
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    info = await started(host)
    pid = (await host.ready(90)).process.pid
    assert len(info.processes) == 2
    for process in info.processes:
        os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await until_gone(*info.processes)
    assert time.monotonic() - began < 20  # on a machine that is busy with other things
    report = await host.end(30)
    assert report.verified
    assert marked(host.key) == ()


async def test_end_returns_only_when_everything_of_the_host_is_proven_gone(factory: RayHostFactory) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    info = await started(host)
    description = await host.ready(90)
    os.kill(info.processes[-1].pid, signal.SIGSTOP)
    os.kill(description.process.pid, signal.SIGSTOP)
    with anyio.fail_after(60):
        report = await host.end(30)
    assert report.verified
    assert report.left == ()
    assert not any(alive(process) for process in (description.process, *info.processes))
    end = await host.ended()
    assert end.intended


async def test_a_stream_ends_with_the_host(factory: RayHostFactory) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    description = await host.ready(90)
    reading = asyncio.ensure_future(anext(aiter(host.stream())))
    await host.flow("nobody", 1, is_open=True)
    os.kill(description.process.pid, signal.SIGKILL)
    with pytest.raises(HostGoneError) as gone:
        await reading
    assert gone.value.end.root.type == "SYSTEM_ERROR"
    with pytest.raises(HostGoneError):
        await host.abort([])


async def test_each_epoch_is_an_actor_of_its_own_and_is_made_once(factory: RayHostFactory) -> None:
    first = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    with pytest.raises(ValueError, match="epoch=1"):
        await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    second = await factory.create(child="llm/1", epoch=2, engine="sim", options=PLAIN)
    pids = {(await host.ready(90)).process.pid for host in (first, second)}
    assert len(pids) == 2
    assert first.key != second.key
    report = await factory.end_child("llm/1", 5)
    assert report.verified
    assert {process.pid for process in report.killed} <= pids


async def test_a_host_that_never_came_up_is_ended_all_the_same(factory: RayHostFactory) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    report = await host.end(10)
    assert report.verified
    with pytest.raises(HostGoneError):
        await host.ready(5)


async def test_what_no_node_has_is_said_when_a_host_does_not_come_up(factory: RayHostFactory) -> None:
    options = ActorOptions(num_cpus=0, resources={"slot": 99})
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=options)
    with pytest.raises(RayCallTimeout, match="no node has slot=99: the largest has 4 in all"):
        await host.ready(0.5)
    assert (await host.end(30)).verified


async def test_resources_variables_and_the_node_are_passed_through(
    factory: RayHostFactory, cluster: RayCluster, tmp_path: Path
) -> None:
    options = ActorOptions(
        num_cpus=1,
        resources={"slot": 3},
        env_vars={"RAYVISOR_LOG_DIR": os.fspath(tmp_path)},
        scheduling=NodePin(cluster.node_id),
    )
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=options)
    await started(host)
    failed = await host.ensure_started(2, {"fail_start": "no weights"}, 90)
    assert isinstance(failed, Termination)
    assert failed.log_file.startswith(os.fspath(tmp_path))
    crowded = await factory.create(child="llm/2", epoch=1, engine="sim", options=options)
    with pytest.raises(RayCallTimeout):
        await crowded.ready(1)
    await host.end(30)
    await crowded.ready(90)


async def test_ctrl_c_in_the_terminal_leaves_the_host_and_its_reaper_running(
    factory: RayHostFactory,
) -> None:
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
    info = await started(host)
    pid = (await host.ready(90)).process.pid
    assert host.reaper > 0
    for process in (pid, host.reaper, *(process.pid for process in info.processes)):
        os.kill(process, signal.SIGINT)
    await host.submit(1, [])
    assert await started(host) == info
    assert all(alive(process) for process in info.processes)
    os.kill(pid, signal.SIGKILL)
    await until_gone(*info.processes)


async def test_the_timeouts_of_the_driver_reach_the_host_and_its_reaper(cluster: RayCluster) -> None:
    timeouts = Timeouts(process=ProcessTimeouts(reaper_scan=0.375, reaper_kill=7.5))
    async with RayHostFactory(cluster, timeouts=timeouts) as factory:
        host = await factory.create(child="llm/1", epoch=1, engine="sim", options=PLAIN)
        await host.ready(90)
        command = psutil.Process(host.reaper).cmdline()
        assert {"0.375", "7.5"} <= {*command}


@pytest.mark.parametrize("body", ["__version__ = '0.0.1'", "raise ImportError('no rayvisor here')"])
async def test_workers_without_the_drivers_package_get_one_error_with_the_line_to_paste(
    factory: RayHostFactory, tmp_path: Path, body: str
) -> None:
    package = tmp_path / "rayvisor"
    package.mkdir()
    (package / "__init__.py").write_text(body, encoding="utf-8")
    options = ActorOptions(env_vars={"PYTHONPATH": os.fspath(tmp_path)})
    host = await factory.create(child="llm/1", epoch=1, engine="sim", options=options)
    with pytest.raises(WorkerPackageError) as raised:
        await host.ready(90)
    assert raised.value.found == ("0.0.1" if "0.0.1" in body else None)
    message = str(raised.value)
    assert f'runtime_env={{"pip": ["rayvisor=={raised.value.wanted}"]}}' in message
    assert 'runtime_env={"py_modules": ["' in message
    assert (await host.end(30)).verified
