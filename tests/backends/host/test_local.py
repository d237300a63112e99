"""Hosts in this process: the timeouts of their factory."""

from __future__ import annotations

import pytest

from rayvisor._backends.host.local import LocalHostFactory
from rayvisor.specs import ActorOptions
from rayvisor.timeouts import HostTimeouts, Timeouts


async def test_a_host_that_takes_longer_than_its_factory_allows_has_not_answered() -> None:
    async with LocalHostFactory(Timeouts(host=HostTimeouts(answer=0.001))) as factory:
        host = await factory.create(child="llm/1", epoch=1, engine="sim", options=ActorOptions())
        await host.ensure_started(1, {}, 60)
        with pytest.raises(TimeoutError, match=r"stop_engine of the host of llm/1 .* within 0\.001 s"):
            await host.stop_engine(1, 0.0)
