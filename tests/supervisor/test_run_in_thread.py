"""The supervisor for blocking programs."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from typing import Any, get_type_hints

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor.blocking import (
    BlockingGeneration,
    BlockingPool,
    BlockingRef,
    BlockingServer,
    BlockingSupervisor,
    SupervisorOptions,
)
from tests.waiting import until_now

PROMPT = "Once upon a time"
GREEDY = {"max_tokens": 40, "temperature": 0.0}


async def forever() -> None:
    await anyio.sleep_forever()


def engines(**arguments: object) -> rv.SupervisorSpec:
    return rv.SupervisorSpec(children=[rv.engine_pool("llm", engine="sim", engine_args=arguments)])


def test_the_verbs_are_plain_calls_and_the_tree_ends_with_the_block() -> None:
    ended: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(threading.current_thread().name)

    with rv.run_in_thread(rv.SupervisorSpec(children=[rv.coroutine("a", child)])) as sup:
        assert [x.id for x in sup.which_children()] == ["a"]
        assert sup.start_child(rv.coroutine("b", forever)) == "b"
        sup.terminate_child("b")
        sup.restart_child("b")
        sup.pause("b")
        sup.resume("b")
        sup.terminate_child("b")
        sup.delete_child("b")
        assert sup.count_children().specs == 1
        assert sup.get_childspec("a").id == "a"
        with pytest.raises(rv.UnknownChildError):
            sup["b"]
        assert ended == []
    assert ended
    assert threading.current_thread().name not in ended
    with pytest.raises(rv.SupervisorStoppedError):
        sup.which_children()


def test_a_pool_gives_iterators_and_batches() -> None:
    with rv.run_in_thread(engines(tokens_per_second=0.0), local=True) as sup:
        pool = sup["llm"]
        chunks = list(pool.generate(PROMPT, GREEDY))
        text = "".join(chunk.text for chunk in chunks)
        assert pool.generate(PROMPT, GREEDY).result().text == text
        assert [x.text for x in pool.generate_many([PROMPT] * 3, GREEDY)] == [text] * 3
        with pool.generate(PROMPT, GREEDY) as generation:
            assert next(generation).text
            assert generation.usage.prompt_tokens == len(PROMPT)
            assert generation.request.startswith("llm-")
        info = sup.engine_info("llm/1")
        assert info is not None
        assert info.engine == "sim"
        assert {role for role, _ in sup.processes("llm/1")} == {"engine"}


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_stream_that_is_left_is_aborted(way: str) -> None:
    with rv.run_in_thread(engines(tokens_per_second=20.0), local=True) as sup:
        pool = sup["llm"]
        if way == "close":
            generation = pool.generate(PROMPT, {"max_tokens": 2000})
            next(generation)
            generation.close()
        else:
            for _ in pool.generate(PROMPT, {"max_tokens": 2000}):
                break
        until_now(lambda: pool.stats().in_flight == 0)


def test_engines_are_told_things_by_plain_calls_too() -> None:
    with rv.run_in_thread(engines(fault_tolerance=True), local=True) as sup:
        sup.mark_stale("llm")
        assert sup.recovery_instructions("llm") == ("retry",)
        # Like vLLM's, it takes no retry while it is healthy.
        assert not sup.set_recovery_instruction("retry", "llm", request_id="a")["llm/1"]["success"]


def test_threads_may_share_it() -> None:
    with rv.run_in_thread(engines(tokens_per_second=0.0), local=True) as sup:
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda: texts.append(sup["llm"].generate(PROMPT, GREEDY).result().text))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(texts) == 4
        assert len(set(texts)) == 1


def test_giving_up_fails_the_next_call_and_raises_its_reason_from_it() -> None:
    crash = threading.Event()

    async def child() -> None:
        while not crash.is_set():  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.005)
        raise ConnectionError("lost")

    def block() -> None:
        with rv.run_in_thread(rv.SupervisorSpec(intensity=0, children=[rv.coroutine("a", child)])) as sup:
            crash.set()
            while True:
                sup.which_children()

    with pytest.raises(
        rv.SupervisorGaveUpError, match=r"^ConnectionError: lost \(a, incarnation 1"
    ) as raised:
        block()
    assert isinstance(raised.value.__cause__, rv.SupervisorStoppedError)


def test_a_failing_start_raises_and_the_blocks_own_error_goes_on() -> None:
    with pytest.raises(rv.StartFailedError, match="unexpected argument 'nonsense'"):
        rv.run_in_thread(engines(nonsense=1), local=True).__enter__()

    def block() -> None:
        with rv.run_in_thread(rv.SupervisorSpec()):
            raise KeyError("mine")

    with pytest.raises(KeyError):
        block()


def test_records_are_an_iterator_that_ends_with_the_tree() -> None:
    supervisor = rv.run_in_thread(rv.SupervisorSpec(children=[rv.coroutine("a", forever)]))
    entered: list[str] = []
    supervisor.on_enter("SERVING", lambda change: entered.append(change.model.child), chart="actor")
    seen: list[r.Record] = []
    with supervisor as sup:
        watch: Iterator[r.Record] = sup.watch()
        reader = threading.Thread(target=lambda: seen.extend(watch))
        reader.start()
        sup.terminate_child("a")
        until_now(lambda: any(isinstance(x, r.StateChanged) and x.after == "DEAD.STOPPED" for x in seen))
    reader.join(60)
    assert not reader.is_alive()
    assert entered == ["a"]


def test_it_leaves_no_thread_and_no_loop_behind() -> None:
    before = set(threading.enumerate())
    with rv.run_in_thread(rv.SupervisorSpec()):
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) - before == set()


MIRRORS = [
    (rv.Supervisor, BlockingSupervisor),
    (rv.EnginePool, BlockingPool),
    (rv.Generation, BlockingGeneration),
    (rv.ChildRef, BlockingRef),
    (rv.ServerRef, BlockingServer),
]
RENAMED = {"aclose": "close"}


def public(cls: type) -> dict[str, Any]:
    members = dict(inspect.getmembers_static(cls))
    return {name: members[name] for name in members if not name.startswith("_")}


@pytest.mark.parametrize(("original", "blocking"), MIRRORS, ids=lambda cls: cls.__name__)
def test_a_blocking_class_has_all_public_methods_of_its_original(original: type, blocking: type) -> None:
    theirs, ours = public(original), public(blocking)
    slots = {name for name, member in theirs.items() if inspect.ismemberdescriptor(member)}
    missing = {RENAMED.get(name, name) for name in theirs.keys() - slots} - ours.keys()
    assert missing == set()
    for name, member in theirs.items():
        mirrored = ours.get(RENAMED.get(name, name))
        assert isinstance(member, property) == isinstance(mirrored, property) or name in slots, name
        if inspect.isfunction(member):
            assert inspect.isfunction(mirrored), name
            assert not inspect.iscoroutinefunction(mirrored), name
            arguments = [
                [
                    (each.name, each.kind, each.default)
                    for each in inspect.signature(function).parameters.values()
                ]
                for function in (member, mirrored)
            ]
            assert arguments[0] == arguments[1], name


def test_a_blocking_supervisor_takes_the_options_of_a_supervisor() -> None:
    theirs = inspect.signature(rv.Supervisor).parameters.keys() - {"spec", "handle_signals"}
    assert get_type_hints(SupervisorOptions).keys() == theirs


def test_children_are_reached_by_typed_getters() -> None:
    with rv.run_in_thread(engines(tokens_per_second=0.0), local=True) as sup:
        assert sup.pool("llm").generate(PROMPT, GREEDY).result().text
        with pytest.raises(rv.ChildKindError):
            sup.actor("llm")
        with pytest.raises(rv.ChildKindError):
            sup.server("llm")


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_tree_is_ended_from_within_by_a_plain_call(way: str) -> None:
    with rv.run_in_thread(rv.SupervisorSpec(children=[rv.coroutine("a", forever)])) as sup:
        if way == "stop":
            sup.stop()
        else:
            sup.kill()
        with pytest.raises(rv.SupervisorStoppedError):
            until_now(lambda: not sup.which_children())
