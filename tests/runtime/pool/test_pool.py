"""The pool on an event loop. Its engines are in memory, its clock is virtual."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import pytest

from rayvisor._core.protocol.wire import GenerateCommand, Refused
from rayvisor._runtime.pool.pool import EnginePool
from rayvisor._runtime.pool.runtime import PoolRuntime
from rayvisor._runtime.pool.streams import Stream
from rayvisor.faults import Cause
from rayvisor.pool import (
    DeadlineExceededError,
    Generation,
    GenerationClosedError,
    GenerationInUseError,
    InvalidRequestError,
    NoEngineError,
    PoisonRequestError,
    QueueFullError,
    RequestError,
    RequestLimits,
)
from tests.core.requests.oracle import INFO, Run, answer, fault_of

A, B = "pool/1", "pool/2"
LONG: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "temperature": 0}
Attempt = tuple[str, int]


class Line:
    """Engines in memory. They generate when they are told to, or, with ``free``, at once."""

    def __init__(self, *, free: bool = False) -> None:
        self.free = free
        self.runs: dict[tuple[str, int, str, int], Run] = {}
        self.aborted: list[Attempt] = []
        self.flows: list[tuple[str, int, bool]] = []
        self.submitted: list[str] = []
        self.before_submit: Callable[[str], Awaitable[None]] | None = None

    async def submit(self, child: str, incarnation: int, orders: Sequence[GenerateCommand], /) -> None:
        if self.before_submit is not None:
            await self.before_submit(child)
        for order in orders:
            self.submitted.append(order.request)
            self.runs[child, incarnation, order.request, order.attempt] = Run(order)
        if self.free:
            while self.generate(5):
                pass

    async def abort(self, child: str, incarnation: int, attempts: Sequence[Attempt], /) -> None:
        for request, attempt in attempts:
            self.aborted.append((request, attempt))
            self.runs.pop((child, incarnation, request, attempt), None)

    async def flow(self, child: str, incarnation: int, request: str, attempt: int, *, is_open: bool) -> None:
        del child, incarnation
        self.flows.append((request, attempt, is_open))

    def generate(self, size: int = 1) -> bool:
        """Let every engine generate for each of its requests; says whether there were any."""
        runs = list(self.runs.items())
        for (child, incarnation, request, attempt), run in runs:
            chunk = run.chunk(size)
            if chunk.finish_reason is not None:
                del self.runs[child, incarnation, request, attempt]
            self.pool.items(child, incarnation, [chunk])
        return bool(runs)

    def kill(self, child: str, incarnation: int) -> None:
        self.runs = {key: run for key, run in self.runs.items() if key[:2] != (child, incarnation)}
        self.pool.engine_down(child, incarnation, fault_of(child, incarnation))

    pool: PoolRuntime


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def running(
    *children: str, free: bool = False, clock: Clock | None = None, **limits: Any
) -> AsyncIterator[tuple[EnginePool, Line]]:
    line = Line(free=free)
    runtime = PoolRuntime(line, limits=RequestLimits(**limits), rng=Random(1), clock=clock or Clock())
    line.pool = runtime
    with anyio.fail_after(60):
        async with runtime:
            for child in children:
                runtime.engine_up(child, 1, INFO)
            yield EnginePool(runtime), line


async def until(condition: Callable[[], object]) -> None:
    """Let everything that can run, run, until the condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("the condition never held")


async def test_a_killed_engine_is_not_seen_by_the_reader() -> None:
    async with running(A, B) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        line.generate(3)
        line.kill(A, 1)
        await until(lambda: line.runs)
        while line.generate(4):
            pass
        chunks = [chunk async for chunk in generation]
        tokens = tuple(token for chunk in chunks for token in chunk.token_ids)
        expected = answer("once", LONG)
        assert (tokens, "".join(chunk.text for chunk in chunks)) == (expected.tokens, expected.text)
        assert [chunk.child for chunk in chunks[:2]] == [A, B]
        assert generation.usage.completion_tokens == 30
        assert generation.usage.prompt_tokens == 4
        assert generation.completion is not None
        assert generation.completion.text == expected.text


async def test_a_request_sent_before_any_engine_is_up_waits_for_one() -> None:
    async with running(free=True) as (pool, line):
        generation = pool.generate("once", LONG)
        assert pool.stats().waiting == 1
        line.pool.engine_up(A, 1, INFO)
        assert (await generation.result()).token_ids == answer("once", LONG).tokens


async def test_samples_come_apart_by_their_index() -> None:
    async with running(A, free=True) as (pool, _):
        completion = await pool.generate("once", {"n": 2, "seed": 4}).result()
        for index, sample in enumerate(completion.samples):
            expected = answer("once", {"seed": 4 + index})
            assert (sample.token_ids, sample.text) == (expected.tokens, expected.text)


async def test_leaving_the_loop_aborts_the_request_also_while_the_generation_is_held() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        line.generate()
        async for _ in generation:
            break
        await until(lambda: line.aborted)
        assert line.aborted == [("pool-1.0", 1)]
        assert generation.usage.completion_tokens == 1
        with pytest.raises(GenerationClosedError):
            await anext(generation)
        assert pool.stats().abandoned == 1


async def test_an_error_in_the_loop_aborts_the_request() -> None:
    async with running(A) as (pool, line):

        async def read() -> None:
            async for _ in pool.generate("once", LONG):
                raise LookupError

        task = asyncio.create_task(read())
        await until(lambda: line.runs)
        line.generate()
        with pytest.raises(LookupError):
            await task
        del task
        gc.collect()
        await until(lambda: line.aborted)


async def test_cancelling_the_reader_aborts_the_request() -> None:
    async with running(A) as (pool, line):

        async def read() -> None:
            async for _ in pool.generate("once", LONG):
                pass

        task = asyncio.create_task(read())
        await until(lambda: line.runs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: line.aborted)


async def cancelled(read: Callable[[], Awaitable[object]]) -> BaseException:
    task = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    return caught.value


async def timed_out(read: Callable[[], Awaitable[object]]) -> BaseException:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0):
            await read()
    return caught.value


async def beside_a_failing_sibling(read: Callable[[], Awaitable[object]]) -> BaseException:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await read()
    except ExceptionGroup as group:
        return group
    pytest.fail("the sibling's error was lost")


async def in_a_cancelled_scope(read: Callable[[], Awaitable[object]]) -> BaseException:
    kept: list[BaseException] = []
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        try:
            await read()
        except BaseException as error:
            kept.append(error)
            raise
    return kept[0]


@pytest.mark.parametrize("how", [cancelled, timed_out, beside_a_failing_sibling, in_a_cancelled_scope])
@pytest.mark.parametrize("what", ["for", "for_held", "result"])
async def test_a_reader_that_is_cancelled_while_it_waits_aborts_at_once_whoever_keeps_the_error(
    how: Callable[[Callable[[], Awaitable[object]]], Awaitable[BaseException]], what: str
) -> None:
    async with running(A) as (pool, line):
        held: list[Generation] = []

        async def read() -> None:
            generation = pool.generate("once", LONG)
            if what == "for_held":
                held.append(generation)
            if what == "result":
                await generation.result()
            async for _ in generation:
                pass

        gc.disable()
        try:
            kept = await how(read)
            assert pool.stats().abandoned == 1
            assert kept.__traceback__ is not None
        finally:
            gc.enable()
        assert line.pool._streams == {}


async def test_a_second_reader_that_is_refused_does_not_abort_the_first() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", LONG)
        first = asyncio.ensure_future(anext(generation))
        await until(lambda: line.runs)
        with pytest.raises(GenerationInUseError) as kept:
            await generation.result()
        line.generate()
        assert len((await first).token_ids) == 1
        assert kept.value.request == "pool-1"


async def test_a_stream_that_ended_with_an_error_tells_it_to_each_reader() -> None:
    async with running() as (pool, line):
        generation = pool.generate("once", LONG)
        line.pool.close(fault_of(A, 1))
        for _ in range(2):
            with pytest.raises(NoEngineError):
                async for _chunk in generation:
                    pass
            with pytest.raises(NoEngineError):
                await generation.result()


async def test_a_generation_that_nobody_holds_is_aborted() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        del generation
        await until(lambda: line.aborted)


async def test_a_generation_that_another_thread_drops_is_aborted() -> None:
    async with running(A) as (pool, line):
        held = [pool.generate("once", LONG)]
        await until(lambda: line.runs)
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        await until(lambda: line.aborted)


async def test_the_end_of_the_with_block_aborts_the_request() -> None:
    async with running(A) as (pool, line):
        async with pool.generate("once", LONG) as generation:
            await until(lambda: line.runs)
            line.generate()
            first = await anext(generation)
        assert len(first.token_ids) == 1
        await until(lambda: line.aborted)


async def test_a_finished_request_is_not_aborted() -> None:
    async with running(A, free=True) as (pool, line):
        async for _ in pool.generate("once", LONG):
            pass
        gc.collect()
        await asyncio.sleep(0)
        assert line.aborted == []


async def test_an_order_that_was_not_sent_yet_is_never_sent_once_it_is_abandoned() -> None:
    async with running(A) as (pool, line):
        await pool.generate("once", LONG).aclose()
        kept = pool.generate("upon", LONG)
        await until(lambda: line.submitted)
        assert line.submitted == ["pool-2.0"]
        await kept.aclose()


async def test_a_cancelled_anext_loses_no_chunk_and_does_not_abort() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        waiting = asyncio.ensure_future(anext(generation))
        await asyncio.sleep(0)
        waiting.cancel()
        line.generate(2)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await anext(generation)).token_ids == answer("once", LONG).tokens[:2]
        assert line.aborted == []


async def test_two_readers_of_one_stream_are_told_apart() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", LONG)
        first = asyncio.ensure_future(anext(generation))
        await asyncio.sleep(0)
        with pytest.raises(GenerationInUseError, match="another task"):
            await anext(generation)
        await until(lambda: line.runs)
        line.generate()
        assert len((await first).token_ids) == 1


async def test_another_event_loop_is_told_so() -> None:
    async with running(A) as (pool, _):
        generation = pool.generate("once", LONG)

        def elsewhere() -> None:
            async def read() -> None:
                await anext(generation)

            with pytest.raises(GenerationInUseError, match="another event loop"):
                asyncio.run(read())
            with pytest.raises(GenerationInUseError):
                pool.generate("once")

        await asyncio.to_thread(elsewhere)


async def test_a_pool_that_does_not_run_says_so() -> None:
    with pytest.raises(RequestError, match="does not run"):
        EnginePool(PoolRuntime(Line())).generate("once")


async def test_a_slow_reader_is_not_read_for() -> None:
    async with running(A, slow_at=8, fast_at=2) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        for _ in range(8):
            line.generate()
        await until(lambda: line.flows)
        assert line.flows == [("pool-1.0", 1, False)]
        for _ in range(6):
            await anext(generation)
        await until(lambda: len(line.flows) == 2)
        assert line.flows[1] == ("pool-1.0", 1, True)


async def test_result_takes_everything_so_nothing_is_held_back() -> None:
    async with running(A, slow_at=3, fast_at=1) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        line.generate(2)
        await anext(generation)
        line.generate(2)
        whole = asyncio.ensure_future(generation.result())
        await asyncio.sleep(0)
        while line.generate(1):
            pass
        assert (await whole).token_ids == answer("once", LONG).tokens
        assert line.flows == []


async def test_a_deadline_ends_the_stream_after_what_was_delivered() -> None:
    clock = Clock()
    async with running(A, clock=clock) as (pool, line):
        generation = pool.generate("once", LONG, timeout=5)
        await until(lambda: line.runs)
        line.generate(3)
        clock.now = 5.0
        line.pool.tick()
        assert len((await anext(generation)).token_ids) == 3
        with pytest.raises(DeadlineExceededError):
            await anext(generation)
        await until(lambda: line.aborted)


async def test_the_pool_keeps_deadlines_by_itself() -> None:
    line = Line()
    with anyio.fail_after(60):
        async with PoolRuntime(line) as runtime:
            pool = EnginePool(runtime)
            with pytest.raises(DeadlineExceededError):
                await pool.generate("once", timeout=0.01).result()


async def test_when_no_engine_will_come_back_the_root_cause_is_named() -> None:
    async with running() as (pool, line):
        waiting = pool.generate("once")
        line.pool.close(fault_of(A, 1))
        for call in (waiting.result, pool.generate_many):
            with pytest.raises(NoEngineError, match=r"^ProcessKilled: EngineCore was ended by SIGKILL"):
                await (call() if call == waiting.result else pool.generate_many(["a"]))


async def test_no_stream_outlives_its_pool() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        line.generate(2)
    assert (await anext(generation)).token_ids  # what was delivered can be read still
    with pytest.raises(NoEngineError):
        await anext(generation)
    assert generation.usage.completion_tokens == 2


async def test_a_request_that_the_engine_refuses_says_why() -> None:
    async with running(A) as (pool, line):
        generation = pool.generate("once", {"top_p": 7})
        await until(lambda: line.runs)
        line.pool.items(
            A, 1, [Refused("pool-1.0", 1, (Cause("ValueError", "top_p must be in (0, 1], got 7"),))]
        )
        with pytest.raises(InvalidRequestError, match="top_p must be in"):
            await anext(generation)


async def test_an_error_inside_the_with_block_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError):
        async with running(A):
            raise LookupError


async def test_wrong_calls_are_refused_at_once_and_leave_nothing() -> None:
    async with running(A, queue_limit=1) as (pool, line):
        with pytest.raises(InvalidRequestError, match=r"params\['n'\]=0"):
            pool.generate("once", {"n": 0})
        assert pool.stats().submitted == 0
        assert line.pool._streams == {}


class Odd:
    """A value that breaks whatever looks at it."""

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("odd")

    __hash__ = None  # type: ignore[assignment]  # because of __eq__

    def __bool__(self) -> bool:
        raise ArithmeticError("odd")


@pytest.mark.parametrize(
    "call",
    [
        {"params": {"presence_penalty": Odd()}},
        {"params": {"stop": Odd()}},
        {"params": {"stop_token_ids": Odd()}},
        {"on_divergence": Odd()},
        {"on_weights_changed": Odd()},
        {"prompt": [Odd()]},
    ],
)
async def test_a_call_that_raises_anything_at_all_leaves_nothing(call: dict[str, Any]) -> None:
    async with running(A) as (pool, line):
        with pytest.raises((ArithmeticError, RequestError)):
            pool.generate(**{"prompt": "once", **call})
        assert pool.stats().submitted == 0
        assert line.pool._streams == {}
        assert list(line.pool._scheduler.samples) == []


@pytest.mark.parametrize("event", ["push", "end"])
async def test_an_error_in_the_delivery_to_one_reader_ends_that_stream_only(
    event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(A) as (pool, line):
        broken, sound = pool.generate("once", LONG), pool.generate("upon", LONG)
        await until(lambda: len(line.runs) == 2)
        stream, original, failures = broken._stream, getattr(Stream, event), [ArithmeticError("odd")]

        def fail_once(self: Stream, *args: Any, **named: Any) -> None:
            if self is stream and failures:
                raise failures.pop()
            original(self, *args, **named)

        monkeypatch.setattr(Stream, event, fail_once)
        if event == "end":
            line.pool.items(A, 1, [Refused("pool-1.0", 1, ())])
        await until(lambda: not line.generate(3))
        with pytest.raises(RequestError, match="pool-1 could not be delivered: ArithmeticError"):
            await broken.result()
        assert (await sound.result()).token_ids == answer("upon", LONG).tokens
        assert line.pool._streams == {}
        assert pool.stats().in_flight == 0


async def test_an_engine_that_does_not_take_its_orders_is_routed_around() -> None:
    async with running(A, B) as (pool, line):

        async def refuse(child: str) -> None:
            if child == A:
                raise ConnectionError("host gone")

        line.before_submit = refuse
        generation = pool.generate("once", LONG)
        await until(lambda: line.runs)
        assert {key[0] for key in line.runs} == {B}
        while line.generate(7):
            pass
        assert (await generation.result()).token_ids == answer("once", LONG).tokens


async def test_a_send_that_hangs_is_given_up() -> None:
    line = Line()
    runtime = line.pool = PoolRuntime(line, send_timeout=0.01)
    pool = EnginePool(runtime)
    with anyio.fail_after(60):
        async with runtime:
            hung = asyncio.Event()

            async def hang(child: str) -> None:
                if child == A:
                    hung.set()
                    await anyio.sleep_forever()

            line.before_submit = hang
            line.pool.engine_up(A, 1, INFO)
            generation = pool.generate("once", LONG)
            await hung.wait()
            line.free = True
            line.pool.engine_up(B, 1, INFO)
            assert (await generation.result()).token_ids == answer("once", LONG).tokens


async def test_a_dead_engine_is_sent_nothing_more() -> None:
    async with running(A) as (pool, line):
        pool.generate("once", LONG)
        line.kill(A, 1)
        await asyncio.sleep(0)
        assert line.submitted == []


async def test_a_poison_request_fails_and_the_others_finish() -> None:
    async with running() as (pool, line):
        requests = {prompt: pool.generate(prompt, LONG) for prompt in ("once", "poison", "upon")}
        for incarnation in range(1, 9):
            line.pool.engine_up(A, incarnation, INFO)
            await until(lambda: line.runs or not line.pool._streams)
            while line.runs and not any(run.order.request == "pool-2.0" for run in line.runs.values()):
                line.generate(3)
                await asyncio.sleep(0)
            if line.runs:
                line.kill(A, incarnation)
        with pytest.raises(PoisonRequestError) as caught:
            await requests["poison"].result()
        assert caught.value.fault == fault_of(A, 3) or caught.value.strikes >= 3
        for prompt in ("once", "upon"):
            assert (await requests[prompt].result()).token_ids == answer(prompt, LONG).tokens


async def test_useful_work_is_reported_once_for_each_incarnation() -> None:
    useful: list[tuple[str, int]] = []
    line = Line(free=True)
    runtime = PoolRuntime(line, on_useful=lambda child, incarnation: useful.append((child, incarnation)))
    line.pool, pool = runtime, EnginePool(runtime)
    with anyio.fail_after(60):
        async with runtime:
            line.pool.engine_up(A, 3, INFO)
            await pool.generate_many(["a", "b"], LONG)
    assert useful == [(A, 3)]


async def test_a_batch_waits_for_room_and_keeps_its_order() -> None:
    async with running(A, free=True, queue_limit=2) as (pool, _):
        prompts = [f"prompt {number}" for number in range(40)]
        completions = await pool.generate_many(prompts, LONG)
        assert [each.token_ids for each in completions] == [answer(prompt, LONG).tokens for prompt in prompts]


async def test_a_batch_waits_for_room_behind_others() -> None:
    async with running(queue_limit=1) as (pool, line):
        first = pool.generate("first", LONG)
        with pytest.raises(QueueFullError):
            pool.generate("second", LONG)
        batch = asyncio.ensure_future(pool.generate_many(["third", "fourth"], LONG))
        await asyncio.sleep(0)
        line.free = True
        line.pool.engine_up(A, 1, INFO)
        assert [each.token_ids for each in await batch] == [
            answer(each, LONG).tokens for each in ("third", "fourth")
        ]
        assert (await first.result()).token_ids == answer("first", LONG).tokens


async def test_a_batch_takes_parameters_for_each() -> None:
    async with running(A, free=True) as (pool, _):
        own: list[dict[str, Any]] = [{**LONG, "max_tokens": 3}, {**LONG, "max_tokens": 4}]
        completions = await pool.generate_many(["a", "b"], own)
        assert [len(each.token_ids) for each in completions] == [3, 4]
        with pytest.raises(InvalidRequestError, match="one for each of 3 prompts"):
            await pool.generate_many(["a", "b", "c"], own)
        with pytest.raises(InvalidRequestError, match="list of prompts"):
            await pool.generate_many("abc")


async def test_the_first_error_of_a_batch_is_raised_and_the_rest_aborted() -> None:
    async with running(A) as (pool, line):
        batch = asyncio.ensure_future(
            pool.generate_many(["a", "b"], [LONG, {**LONG, "timeout": None, "n": 0}])
        )
        with pytest.raises(InvalidRequestError, match="n"):
            await batch
        assert line.pool._streams == {}
        assert pool.stats().in_flight == 0
        del line


async def test_errors_of_a_batch_can_take_their_places() -> None:
    async with running(A, free=True) as (pool, _):
        ends = await pool.generate_many(["a", [], "b"], LONG, return_errors=True)
        assert isinstance(ends[1], InvalidRequestError)
        assert [not isinstance(end, RequestError) for end in ends] == [True, False, True]


async def test_cancelling_a_batch_aborts_all_of_it() -> None:
    async with running(A) as (pool, line):
        batch = asyncio.ensure_future(pool.generate_many(["a", "b"], LONG))
        await until(lambda: len(line.runs) == 2)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        await until(lambda: len(line.aborted) == 2)


async def test_stats_say_what_is_where() -> None:
    async with running(A) as (pool, line):
        held: list[Generation] = [pool.generate(f"r{number}", LONG) for number in range(6)]
        stats = pool.stats()
        assert (stats.in_flight, stats.waiting, stats.submitted) == (4, 2, 6)
        assert (stats.engines[0].child, stats.engines[0].in_flight, stats.engines[0].limit) == (A, 4, 4)
        await until(lambda: line.runs)
        del held[:]
        await until(lambda: pool.stats().abandoned == 6)
