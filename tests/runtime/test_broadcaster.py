from __future__ import annotations

import gc

import anyio

from rayvisor._runtime.broadcaster import RecordBroadcaster
from rayvisor.records import Record, RecordsMissed, SupervisorStateChanged


def record(number: int) -> Record:
    return SupervisorStateChanged(at=0.0, path=str(number), state="running")


async def test_a_watcher_sees_what_is_told_from_then_on_and_the_end() -> None:
    broadcaster = RecordBroadcaster(lambda: 0.0)
    broadcaster.publish(record(0))
    watch = broadcaster.watch()
    for number in (1, 2):
        broadcaster.publish(record(number))
    broadcaster.close()
    assert [each async for each in watch] == [record(1), record(2)]
    assert [each async for each in broadcaster.watch()] == []


async def test_a_slow_watcher_is_told_how_much_it_missed_in_the_place_of_what_is_gone() -> None:
    broadcaster = RecordBroadcaster(lambda: 7.0, limit=3)
    watch = broadcaster.watch()
    for number in range(5):
        broadcaster.publish(record(number))
    assert await anext(watch) == RecordsMissed(at=7.0, count=2)
    assert await anext(watch) == record(2)
    for number in range(5, 8):
        broadcaster.publish(record(number))
    broadcaster.close()
    missed = RecordsMissed(at=7.0, count=2)
    assert [each async for each in watch] == [missed, record(5), record(6), record(7)]


async def test_a_watcher_waits_for_the_next_record() -> None:
    broadcaster = RecordBroadcaster(lambda: 0.0)
    watch = broadcaster.watch()
    seen: list[Record] = []

    async def read() -> None:
        seen.extend([each async for each in watch])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        broadcaster.publish(record(1))
        await anyio.wait_all_tasks_blocked()
        assert seen == []  # the comprehension ends with the watch
        broadcaster.close()
    assert seen == [record(1)]


async def test_a_watch_that_nobody_holds_is_forgotten() -> None:
    broadcaster = RecordBroadcaster(lambda: 0.0)
    watch = broadcaster.watch()
    assert len(broadcaster._streams) == 1
    del watch
    gc.collect()
    assert len(broadcaster._streams) == 0
