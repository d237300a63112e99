"""The watchdog: it reports a loop that is blocked, and by what."""

from __future__ import annotations

import time

import anyio

from rayvisor._runtime.watchdog import BlockedPeriod, Watchdog
from rayvisor.timeouts import RuntimeTimeouts


async def test_a_loop_that_is_blocked_longer_than_its_timeout_is_reported() -> None:
    reports: list[BlockedPeriod] = []
    timeouts = RuntimeTimeouts(loop_blocked=0.1, watchdog_round=0.01, watchdog_tick=0.005)
    dog = Watchdog(lambda: "slow", reports.append, timeouts=timeouts)
    with dog.watching():
        await anyio.sleep(0.05)
        time.sleep(0.5)  # noqa: ASYNC251 - a blocked loop is the test
        with anyio.fail_after(60):
            while not reports:  # noqa: ASYNC110 - the report has no event
                await anyio.sleep(0.01)
    assert reports[0].activity == "strategy slow"
    assert reports[0].seconds >= 0.1
    assert "time.sleep" in reports[0].stack
