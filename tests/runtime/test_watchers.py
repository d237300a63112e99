from __future__ import annotations

import gc

import anyio

from rayvisor._runtime.watchers import Watchers
from rayvisor.records import Record, RecordsMissed, SupervisorMoved


def record(number: int) -> Record:
    return SupervisorMoved(at=0.0, path=str(number), state="running")


async def test_a_watcher_sees_what_is_told_from_then_on_and_the_end() -> None:
    watchers = Watchers(lambda: 0.0)
    watchers.tell(record(0))
    watch = watchers.watch()
    for number in (1, 2):
        watchers.tell(record(number))
    watchers.close()
    assert [each async for each in watch] == [record(1), record(2)]
    assert [each async for each in watchers.watch()] == []


async def test_a_slow_watcher_is_told_how_much_it_missed_in_the_place_of_what_is_gone() -> None:
    watchers = Watchers(lambda: 7.0, limit=3)
    watch = watchers.watch()
    for number in range(5):
        watchers.tell(record(number))
    assert await anext(watch) == RecordsMissed(at=7.0, count=2)
    assert await anext(watch) == record(2)
    for number in range(5, 8):
        watchers.tell(record(number))
    watchers.close()
    missed = RecordsMissed(at=7.0, count=2)
    assert [each async for each in watch] == [missed, record(5), record(6), record(7)]


async def test_a_watcher_waits_for_the_next_record() -> None:
    watchers = Watchers(lambda: 0.0)
    watch = watchers.watch()
    seen: list[Record] = []

    async def read() -> None:
        seen.extend([each async for each in watch])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        watchers.tell(record(1))
        await anyio.wait_all_tasks_blocked()
        assert seen == []  # the comprehension ends with the watch
        watchers.close()
    assert seen == [record(1)]


async def test_a_watch_that_nobody_holds_is_forgotten() -> None:
    watchers = Watchers(lambda: 0.0)
    watch = watchers.watch()
    assert len(watchers._watches) == 1
    del watch
    gc.collect()
    assert len(watchers._watches) == 0
