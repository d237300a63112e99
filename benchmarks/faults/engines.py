"""Rows about engines."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import psutil

import rayvisor as rv
from benchmarks.faults.rows import Row
from benchmarks.faults.trial import Trial
from benchmarks.tree import PROMPTS, engine_arguments
from rayvisor import records as r
from rayvisor.faults import FaultClass
from rayvisor.testing import fail_next_step, hang_next_step, rehearse, wait_for_state

__all__ = ["ENGINE_ROWS"]

FATAL, PERMANENT, RECOVERABLE = FaultClass.FATAL, FaultClass.PERMANENT, FaultClass.RECOVERABLE
REQUESTS = 4
YOUNG_SECONDS = 0.5
"""Minimum age of a starting process before it is killed."""
Fault = Callable[[rv.Supervisor, str], Awaitable[None]]
STALL: dict[str, Any] = {"stall_after": 3.0, "probe_interval": 0.5}
"""Limits, in seconds, for rows in which a process hangs."""
MEMORY = 1 << 27
"""Half of the KV cache of the engines here, in bytes."""


def killed(name: str) -> str:
    """Return the pattern of the root cause of a kill."""
    return rf"^ProcessKilled: {name} \(pid \d+\) was ended by SIGKILL"


def stopped(name: str) -> str:
    """Return the pattern of the root cause of a stopped process."""
    return rf"^ProcessStopped: {name} \(pid \d+\) is stopped \(SIGSTOP\)"


async def mid_stream(trial: Trial, victim: str, number: int = signal.SIGKILL, **options: Any) -> None:
    """Send a signal to a process while requests are in flight."""
    async with trial.tree(trial.pool(**options)) as tree:
        expected = await trial.expected(tree, REQUESTS)
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        trial.signal(tree, victim, number)
        await requests.finish()
        await trial.wait_recovered(tree)
        trial.observe()


async def mid_step(trial: Trial, fault: Fault, **options: Any) -> None:
    """Make a model step raise, or never return, while requests are in flight."""
    arguments = {"fault_tolerance": False, **options.pop("engine_args", {})}
    async with trial.tree(trial.pool(engine_args=arguments, **options)) as tree:
        expected = await trial.expected(tree, REQUESTS)
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        trial.inject()
        await fault(tree.supervisor, "llm/1")
        await requests.finish()
        await trial.wait_recovered(tree)
        trial.observe()


async def raises(trial: Trial) -> None:
    """Send a prompt that makes the model step raise."""
    arguments = {"raise_on_prompt": "boom", "fault_tolerance": False}
    async with trial.tree(trial.pool(engine_args=arguments)) as tree:
        expected = await trial.expected(tree, REQUESTS)
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        trial.inject()
        poison = tree.pool.generate("boom", {**trial.params, "max_tokens": 1}, max_attempts=1)
        with anyio.move_on_after(60):
            with contextlib.suppress(rv.RequestError):
                await poison.result()
        await requests.finish()
        await trial.wait_recovered(tree)
        trial.observe()


async def one_of_two_ranks(trial: Trial, **of_the_first: Any) -> None:
    """Inject a fault into one of two ranks that live and recover together."""
    group = rv.engine_group(
        "llm",
        engine=trial.engine,
        engine_args=engine_arguments(trial.engine),
        ranks=2,
        rank_args=[of_the_first, {}],
        recovery_timeout=2.0,
        num_cpus=0.5,
    )
    async with trial.tree(rehearse(group)) as tree:
        expected = await trial.expected(tree, REQUESTS)
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        trial.inject()
        await fail_next_step(tree.supervisor, "llm/1")
        await requests.finish()
        await trial.wait_recovered(tree, "llm/1")
        await trial.wait_recovered(tree, "llm/2")
        trial.observe("llm/1")


async def poison(trial: Trial) -> None:
    """Send a prompt that always kills the engine, among seven innocent ones."""
    arguments = {"crash_on_prompt": "poison", "fault_tolerance": False}
    async with trial.tree(trial.pool(engine_args=arguments, intensity=10)) as tree:
        innocents = 7
        expected = await trial.expected(tree, innocents)
        requests = await trial.requests(tree, innocents, expected=expected)
        trial.inject()
        try:
            await tree.pool.generate("a drop of poison", trial.params).result()
            trial.observed.problem = "the poison request finished"
        except rv.PoisonRequestError:
            pass
        await requests.finish()
        await wait_for_state(tree.supervisor, "llm/1", "ALIVE.SERVING", timeout=120)
        await trial.wait_recovered(tree)
        trial.observe()


async def during_start(trial: Trial) -> None:
    """Kill the engine core while the first incarnation starts."""

    async def kill() -> None:
        tree = await trial.first_tree()
        await tree.until(r.StartProgressed, lambda x: x.child == "llm/1")
        await kill_starting(trial, tree)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        async with trial.tree(trial.pool(engine_args=slow(trial))) as tree:
            trial.observe()
            expected = await trial.expected(tree, REQUESTS)
            requests = await trial.requests(tree, REQUESTS, expected=expected)
            await requests.finish()
            await trial.wait_recovered(tree)


async def during_recovery(trial: Trial) -> None:
    """Kill the engine core, and again while the next incarnation starts."""
    async with trial.tree(trial.pool(engine_args=slow(trial))) as tree:
        expected = await trial.expected(tree, REQUESTS)
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        trial.signal(tree, "EngineCore")
        at = trial.at
        await tree.until(r.StateChanged, lambda x: x.child == "llm/1" and x.event == "start", at or 0.0)
        await kill_starting(trial, tree)
        trial.at = at
        await requests.finish()
        await trial.wait_recovered(tree)
        trial.observe()
        faults = [x.fault for x in tree.records if isinstance(x, r.FaultSeen) and x.fault.child == "llm/1"]
        if [fault.incarnation for fault in faults] != [1, 2]:
            trial.observed.problem = "not exactly one fault per incarnation: " + "; ".join(
                f"{fault.incarnation}: {fault.root}" for fault in faults
            )


def slow(trial: Trial) -> dict[str, Any]:
    """Return the arguments of an engine whose start takes long enough to be hit."""
    return {"compile_seconds": 0.5, "start_delay": 1.0} if trial.engine == "sim" else {}


async def kill_starting(trial: Trial, tree: Any) -> None:
    """Kill the EngineCore of the starting incarnation in the middle of its work."""
    host = next(p.pid for role, p in tree.supervisor.processes("llm/1") if role == "host")
    seen: dict[int, float] = {}
    with anyio.fail_after(60):
        while True:
            for each in psutil.Process(host).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    named = "EngineCore" in " ".join((each.name(), *each.cmdline()))
                    if (
                        named
                        and time.monotonic() - seen.setdefault(each.pid, time.monotonic()) > YOUNG_SECONDS
                    ):
                        trial.inject()
                        os.kill(each.pid, signal.SIGKILL)
                        return
            await anyio.sleep(0.005)


async def while_paused(trial: Trial) -> None:
    """Kill the engine core while the engine is paused; the pause survives the restart."""
    async with trial.tree(trial.pool()) as tree:
        expected = await trial.expected(tree, REQUESTS)
        await tree.supervisor.pause("llm/1")
        trial.signal(tree, "EngineCore")
        await trial.wait_recovered(tree, leaf="PAUSED.REQUESTED")
        await tree.supervisor.resume("llm/1")
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        await requests.finish()
        trial.observe()


async def while_stopping(trial: Trial) -> None:
    """Kill the engine core while the tree stops: nothing is restarted, nothing is left over."""
    async with trial.tree(trial.pool()) as tree:
        await trial.expected(tree, 1)
        await tree.supervisor.stop()
        try:
            trial.signal(tree, "EngineCore")
        except (StopIteration, ProcessLookupError):
            trial.inject()  # it was gone already
    trial.observed.response = "nothing"


async def two_at_once(trial: Trial) -> None:
    """Kill both engines of a pool at the same time."""
    async with trial.tree(trial.pool(size=2)) as tree:
        expected = await trial.expected(tree, REQUESTS)
        requests = await trial.requests(tree, REQUESTS, expected=expected)
        trial.signal(tree, "EngineCore", child="llm/2")
        trial.signal(tree, "EngineCore", child="llm/1")
        await requests.finish()
        await trial.wait_recovered(tree, "llm/1")
        await trial.wait_recovered(tree, "llm/2")
        trial.observe("llm/1")


async def gives_up(trial: Trial, **arguments: Any) -> None:
    """Start an engine that never comes up."""
    await trial.run_failing_start(trial.pool(engine_args=arguments), intensity=0)
    trial.observe("llm/1")


async def crash_loop(trial: Trial) -> None:
    """Kill the engine after every start until the pool gives up and reports why."""
    pool = trial.pool(intensity=2, crash_loop_limit=None, restart=rv.Restart.TEMPORARY)
    async with trial.tree(pool) as tree:
        for incarnation in (1, 2, 3):
            await wait_for_state(tree.supervisor, "llm/1", "SERVING", incarnation=incarnation, timeout=120)
            if incarnation == 1:
                trial.signal(tree, "EngineCore")
            else:
                at = trial.at
                trial.signal(tree, "EngineCore")
                trial.at = at
        decision = await tree.until(r.DecisionMade, lambda x: x.decision == "give_up")
        if "3 restarts within" not in decision.why:
            trial.observed.problem = decision.why
        trial.observe("llm/1")
        trial.observed.response = "give up"


async def is_fine(trial: Trial, count: int = REQUESTS, **arguments: Any) -> None:
    """Run a slow or heavy but healthy load: no fault is reported and nothing is done."""
    pool = trial.pool(engine_args=arguments, **STALL)
    async with trial.tree(pool) as tree:
        trial.inject()
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                prompt = PROMPTS[number % len(PROMPTS)]
                tasks.start_soon(tree.pool.generate(prompt, trial.params).result)
        trial.observe()


def engine_row(
    name: str, fault_class: FaultClass | None, root: str, response: str, run: Callable[..., Awaitable[None]],
    *args: Any, only: str = "", **options: Any,
) -> Row:  # fmt: skip
    """Return a row about an engine."""
    host = run in {during_start, during_recovery} or "host" in args
    return Row(name, fault_class, root, response, _bind(run, args, options), host=host, only=only)


def _bind(
    run: Callable[..., Awaitable[None]], args: tuple[Any, ...], options: dict[str, Any]
) -> Callable[[Trial], Awaitable[None]]:
    return lambda trial: partial(run, trial, *args, **options)()


ENGINE_ROWS: tuple[Row, ...] = (
    engine_row("kill EngineCore", FATAL, killed("EngineCore"), "restart engine", mid_stream, "EngineCore"),
    engine_row("kill Worker", FATAL, killed("Worker"), "restart engine", mid_stream, "Worker"),
    engine_row("kill host", FATAL, killed("the host"), "restart host", mid_stream, "host"),
    engine_row("kill both engines", FATAL, killed("EngineCore"), "restart engine", two_at_once),
    engine_row(
        "stop EngineCore", FATAL, stopped("EngineCore"), "restart engine",
        mid_stream, "EngineCore", signal.SIGSTOP, **STALL,
    ),
    engine_row(
        "stop Worker", FATAL, stopped("Worker"), "restart engine",
        mid_stream, "Worker", signal.SIGSTOP, **STALL,
    ),
    engine_row(
        "stop host", FATAL, stopped("the host"), "restart host",
        mid_stream, "host", signal.SIGSTOP, **STALL,
    ),
    engine_row(
        "endless step", FATAL, r"^EngineStalled: no token for", "restart engine",
        mid_step, hang_next_step, **STALL,
    ),
    engine_row("exception in the model step", FATAL, r"RuntimeError: .*boom", "restart engine", raises),
    engine_row(
        "model step raises, tolerance off", FATAL, r"^RuntimeError", "restart engine",
        mid_step, fail_next_step,
    ),
    engine_row(
        "model step raises, tolerance on", RECOVERABLE, r"^RuntimeError", "in place",
        mid_step, fail_next_step, engine_args={"fault_tolerance": True},
    ),
    engine_row(
        "second fault on the retry path", RECOVERABLE, r"^RuntimeError", "restart engine",
        mid_step, fail_next_step, engine_args={"fault_tolerance": True, "retry": "fault_again"},
    ),
    engine_row(
        "one of two ranks, both recover", RECOVERABLE, r"^RuntimeError", "in place", one_of_two_ranks
    ),
    engine_row(
        "no acknowledgement from one of two", RECOVERABLE, r"^RuntimeError", "restart engine",
        one_of_two_ranks, retry="ignore",
    ),
    engine_row("poison prompt among 7", FATAL, r"was ended by SIGKILL", "restart engine", poison),
    engine_row("kill during start", FATAL, killed("EngineCore"), "restart engine", during_start),
    engine_row("kill during recovery", FATAL, killed("EngineCore"), "restart engine", during_recovery),
    engine_row("kill during pause", FATAL, killed("EngineCore"), "restart engine", while_paused),
    engine_row("kill during stop", None, "", "nothing", while_stopping),
    engine_row("crash loop", FATAL, killed("EngineCore"), "give up", crash_loop),
    engine_row(
        "wrong model", PERMANENT, r"no-such-model", "give up", gives_up, model="/no-such-model", only="vllm"
    ),
    engine_row(
        "failing start, never served", PERMANENT, r"^RuntimeError: no such card", "give up",
        gives_up, fail_start="no such card",
    ),
    engine_row(
        "engine out of memory at load", FATAL, r"(?i)memory", "give up",
        gives_up, memory_bytes=MEMORY, only="vllm",
    ),
    engine_row("slow start that is fine", None, "", "nothing", is_fine, compile_seconds=6.0),
    engine_row("long prefill that is fine", None, "", "nothing", is_fine, prefill_seconds=1.0),
    engine_row("burst of load that is fine", None, "", "nothing", is_fine, 100),
)  # fmt: skip
