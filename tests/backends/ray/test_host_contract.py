"""The contract of every host, on Ray or in the driver's process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import anyio
import pytest

from rayvisor._backends.host.local import LocalHostFactory
from rayvisor._backends.process.identity import alive
from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.host_factory import RayHostFactory
from rayvisor._core.protocol.links import HostCallFailedError, HostFactory, HostGoneError, HostLink
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, HostItem, Phase, Terminated
from rayvisor.faults import Termination
from rayvisor.specs import ActorOptions

pytestmark = pytest.mark.ray


@pytest.fixture(params=["here", "ray"])
async def factory(request: pytest.FixtureRequest, cluster: RayCluster) -> AsyncIterator[HostFactory]:
    factory: HostFactory = LocalHostFactory() if request.param == "here" else RayHostFactory(cluster)
    yield factory
    await factory.close()


async def make(factory: HostFactory, epoch: int = 1) -> HostLink:
    return await factory.create(child="llm/1", epoch=epoch, engine="sim", options=ActorOptions())


async def started(host: HostLink, incarnation: int = 1) -> EngineInfo:
    info = await host.ensure_started(incarnation, {"tokens_per_second": 0.0}, 90)
    assert isinstance(info, EngineInfo), info
    return info


async def items(host: HostLink, kind: type[HostItem], count: int) -> list[HostItem]:
    """Read the stream until it has brought so many items of a kind."""
    found: list[HostItem] = []
    stream = aiter(host.stream())
    try:
        with anyio.fail_after(60):
            while len(found) < count:
                found += [item for item in await anext(stream) if isinstance(item, kind)]
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    return found


async def test_a_host_describes_itself(factory: HostFactory) -> None:
    host = await make(factory)
    description = await host.ready(90)
    assert (host.child, host.epoch) == ("llm/1", 1)
    assert alive(description.process)
    assert description.node
    await started(host)
    assert (await host.ready(90)).process.pid == description.process.pid


async def test_an_incarnation_is_started_once_however_often_it_is_asked_for(factory: HostFactory) -> None:
    host = await make(factory)
    first, second = await asyncio.gather(started(host), started(host))
    assert first == second
    assert await started(host) == first


async def test_an_engine_that_does_not_come_up_is_returned_as_plain_data(factory: HostFactory) -> None:
    host = await make(factory)
    died = await host.ensure_started(1, {"fail_start": "no weights"}, 90)
    assert isinstance(died, Termination)
    assert "no weights" in died.root.message
    await started(host, 2)


async def test_tokens_come_through_the_one_stream(factory: HostFactory) -> None:
    host = await make(factory)
    await started(host)
    reading = asyncio.ensure_future(items(host, Chunk, 1))
    await host.submit(1, [GenerateCommand("r1", 1, "once upon a time", {"max_tokens": 5})])
    (chunk, *_) = await reading
    assert isinstance(chunk, Chunk)
    assert (chunk.request, chunk.attempt) == ("r1", 1)
    await host.abort([("r1", 1)])


async def test_the_phases_of_a_start_come_through_the_stream(factory: HostFactory) -> None:
    host = await make(factory)
    await started(host)
    (phase,) = (await items(host, Phase, 1))[:1]
    assert isinstance(phase, Phase)
    assert phase.incarnation == 1


async def test_the_engines_death_is_told_and_the_host_lives_on(factory: HostFactory) -> None:
    host = await make(factory)
    info = await started(host)
    reading = asyncio.ensure_future(items(host, Terminated, 1))
    os.kill(info.processes[0].pid, signal.SIGKILL)
    (died, *_) = await reading
    assert isinstance(died, Terminated)
    assert died.incarnation == 1
    again = await started(host, 2)
    assert set(again.processes).isdisjoint(info.processes)


async def test_stopping_an_engine_ends_its_processes_and_keeps_the_host(factory: HostFactory) -> None:
    host = await make(factory)
    info = await started(host)
    await host.stop_engine(1, 1.0)
    assert not any(alive(process) for process in info.processes)
    await host.stop_engine(1, 1.0)
    assert alive((await host.ready(90)).process)
    with pytest.raises(HostCallFailedError, match="incarnation 1 does not serve here"):
        await host.ask(1, "get_status", (), {}, 10)


async def test_ending_a_host_ends_everything_of_it_and_every_call_on_it(factory: HostFactory) -> None:
    host = await make(factory)
    info = await started(host)
    os.kill(info.processes[-1].pid, signal.SIGSTOP)
    reading = asyncio.ensure_future(items(host, Terminated, 1))
    waiting = [asyncio.ensure_future(host.ended()) for _ in range(3)]
    await asyncio.sleep(0)
    report = await host.end(30)
    assert report.verified
    assert not any(alive(process) for process in info.processes)
    with anyio.fail_after(60):
        ends = await asyncio.gather(*waiting)
    assert all(end.intended for end in ends)
    with pytest.raises(HostGoneError):
        await reading
    with pytest.raises(HostGoneError) as gone:
        await host.submit(1, [])
    assert gone.value.end.intended


async def test_a_newer_epoch_comes_up_beside_what_is_left_of_the_older_and_all_end_together(
    factory: HostFactory,
) -> None:
    first, second = await make(factory, 1), await make(factory, 2)
    infos = [await started(first), await started(second)]
    with pytest.raises(ValueError, match="epoch=2"):
        await make(factory, 2)
    assert (await factory.end_child("llm/1", 30)).verified
    assert not any(alive(process) for info in infos for process in info.processes)
    assert (await factory.end_child("llm/1", 30)).verified


async def test_closing_the_place_tells_everyone_who_waits_for_a_host(factory: HostFactory) -> None:
    host = await make(factory)
    info = await started(host)
    waiting = asyncio.ensure_future(host.ended())
    await asyncio.sleep(0)
    await factory.close()
    with anyio.fail_after(60):
        assert (await waiting).intended
    assert (await host.ended()).intended
    assert not any(alive(process) for process in info.processes)
