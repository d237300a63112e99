"""A push channel whose subscription fails: it is opened again, unless it was to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import anyio
from structlog.testing import capture_logs

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.push import PushChannel
from rayvisor.timeouts import RayTimeouts
from tests.waiting import until


class Failing:
    """A subscription, and the cluster that makes it: its poll fails once it is told to."""

    def __init__(self) -> None:
        self.fail = anyio.Event()
        self.made = 0

    async def call(self, name: str, make: Callable[[], Any]) -> Failing:
        del name, make
        self.made += 1
        self.fail = anyio.Event()
        return self

    async def subscribe(self) -> None: ...

    async def poll(self) -> list[Any]:
        await self.fail.wait()
        raise KeyError("pop from an empty set")

    async def close(self) -> None:
        if not self.fail.is_set():
            self.fail.set()
            await anyio.sleep(0.01)  # Ray is told, once


def channel(failing: Failing) -> PushChannel:
    cluster = cast("RayCluster", failing)
    timeouts = RayTimeouts(resubscribe_first=0.01)
    return PushChannel(cluster, "Actor", on_record=lambda *_: None, on_gap=lambda: None, timeouts=timeouts)


async def test_one_that_fails_is_opened_again_and_one_that_fails_as_it_is_closed_is_no_news() -> None:
    failing = Failing()
    read = channel(failing)
    with capture_logs() as logs:
        read.start()
        await until(lambda: read.active)
        failing.fail.set()
        await until(lambda: failing.made == 2 and read.active)
        assert [log["event"] for log in logs] == ["ray.push.broke"]
        await read.close()
    assert [log["event"] for log in logs] == ["ray.push.broke"]
    assert not read.active
