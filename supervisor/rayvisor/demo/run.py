"""The demo: real Ray, a real engine, a real fault in the middle of several streams."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from rayvisor import records as r
from rayvisor._backends.process.identity import alive
from rayvisor.demo.outcome import Outcome, ReceivedStream, compare
from rayvisor.demo.scenario import DemoRequest, Injection, hangs, injection, make_requests
from rayvisor.errors import RayvisorError
from rayvisor.specs import StallLimits, SupervisorSpec, engine_pool
from rayvisor.specs.limits import PATIENT
from rayvisor.supervisor import Supervisor
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import ProcessId
    from rayvisor._runtime.pool.pool import EnginePool

__all__ = ["DemoView", "run_demo"]


class DemoView(Protocol):
    """Displays the demo: as a live view, or as lines."""

    def stage(self, text: str) -> None:
        """Show the next stage of the demo."""

    def record(self, record: r.Record) -> None:
        """Show a record of the supervisor."""

    def injected(self, what: str, after: int, of: int) -> None:
        """Show the injected fault, after ``after`` of ``of`` tokens."""

    def streams(self, streams: list[ReceivedStream]) -> None:
        """Take the streams, which grow during the demo."""

    def recovered(self, seconds: float) -> None:
        """Show the time from the fault to the first token after it."""

    def outcome(self, outcome: Outcome) -> None:
        """Show the outcome."""


SHORT_STALL_LIMITS = StallLimits(stall_after=5.0, probe_interval=0.5)
"""Stall limits for faults that make the engine hang, shorter than the default of half a minute."""

_CACHE_BYTES = 1 << 28


def engine_arguments(engine: str, model: str, fault: str) -> Mapping[str, Any]:
    """Return the arguments of the demo's engine."""
    if engine == "sim":
        return {"start_delay": 1.0, "tokens_per_second": 300.0, "max_model_len": 1024}
    # A real worker has to be prepared for the signal; the simulated one handles it already.
    endless = {"worker_extension_cls": "rayvisor.demo.endless.Endless"} if fault == "endless-step" else {}
    return {
        **endless,
        "model": model,
        "dtype": "float32",
        "enforce_eager": True,
        # Otherwise vLLM requests nearly all memory, even if other processes use some of it.
        "kv_cache_memory_bytes": _CACHE_BYTES,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "disable_log_stats": True,
    }


async def run_demo(
    *,
    engine: str,
    fault: str,
    requests: int,
    seed: int,
    view: DemoView,
    model: str = "",
    web: int | None = None,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Outcome:
    """Run the demo once.

    Parameters
    ----------
    engine
        ``"vllm"`` or ``"sim"``.
    fault
        A name of ``rayvisor.demo.scenario.FAULTS``.
    requests
        Number of streams.
    seed
        Seed of the prompts and the sampling.
    view
        Displays the demo.
    model
        Folder of the model, for vLLM.
    web
        Port of the live page; 0 for a free one, None for no page. The streams begin when the page has been
        opened, or after 30 s.
    timeouts
        Timeouts of the demo and its tree.
    """
    outcome = Outcome(engine=engine, fault=fault, seed=seed, requests=requests)
    limits = SHORT_STALL_LIMITS if hangs(fault) else PATIENT
    spec = SupervisorSpec(
        children=[
            engine_pool(
                "llm",
                engine=engine,
                engine_args=engine_arguments(engine, model, fault),
                num_cpus=1,
                request_timeout=600.0,
                stall_after=limits.stall_after,
                probe_interval=limits.probe_interval,
            )
        ]
    )
    view.stage("starting Ray")
    supervisor = Supervisor(spec, seed=seed, ray_options={"num_cpus": 2}, timeouts=timeouts)
    seconds = timeouts.commands.demo_open
    demo = _Demo(supervisor, outcome, view, injection(fault))
    try:
        async with anyio.create_task_group() as watching:
            watching.start_soon(demo.watch, supervisor.watch())
            page = None if web is None else await supervisor.serve_web(web)
            async with supervisor:
                if page is not None:
                    view.stage(f"open {page.url} (the streams begin then, or after {seconds:g} s)")
                    with anyio.move_on_after(seconds):
                        await page.visited()
                await demo.run(make_requests(requests, seed))
                view.stage("stopping")
    except* RayvisorError as errors:
        outcome.error = "; ".join(str(error) for error in errors.exceptions)
    outcome.heavy_imports = [name for name in ("vllm", "torch", "transformers") if name in sys.modules]
    outcome.processes_left = await _left(demo.seen, timeouts.commands.demo_settle)
    view.outcome(outcome)
    return outcome


class _Demo:
    """One run, inside its supervisor."""

    def __init__(
        self, supervisor: Supervisor, outcome: Outcome, view: DemoView, injection: Injection | None
    ) -> None:
        self.injection = injection
        self.supervisor = supervisor
        self.outcome = outcome
        self.view = view
        self.seen: set[ProcessId] = set()
        self.streams: list[ReceivedStream] = []
        self.injected_at: float | None = None
        self.wanted = 0

    async def run(self, requests: list[DemoRequest]) -> None:
        self._note_processes()
        self.outcome.cold_start_s = self._cold_start()
        self.streams = [ReceivedStream(request.kind, request.prompt) for request in requests]
        self.wanted = sum(request.params["max_tokens"] for request in requests)
        self.view.streams(self.streams)
        self.view.stage(f"streaming {len(requests)} requests")
        async with anyio.create_task_group() as streams:
            for request, stream in zip(requests, self.streams, strict=True):
                streams.start_soon(self._read, request, stream)
        self._note_processes()
        await self._compare(requests)

    async def _read(self, request: DemoRequest, stream: ReceivedStream) -> None:
        try:
            async with self.pool.generate(request.prompt, request.params) as generation:
                async for chunk in generation:
                    if stream.incarnation and chunk.incarnation != stream.incarnation:
                        stream.seams.append(len(stream.text))
                    if chunk.incarnation != stream.incarnation and stream.incarnation:
                        self._recovered()
                    stream.incarnation = chunk.incarnation
                    stream.tokens += chunk.token_ids
                    stream.text += chunk.text
                    self.outcome.tokens += len(chunk.token_ids)
                    if self.injection is not None and self.injected_at is None and self._in_the_middle():
                        self._inject(self.injection)
                result = await generation.result()
            stream.finish_reason = result.finish_reason
            stream.seed = result.samples[0].seed
        except RayvisorError as error:
            stream.error = str(error)

    def _in_the_middle(self) -> bool:
        return self.outcome.tokens * 4 >= self.wanted and all(stream.tokens for stream in self.streams)

    def _inject(self, fault: Injection) -> None:
        target = next(
            process
            for role, process in self.supervisor.processes("llm/1")
            if fault.victim in (role, *process.name.split("::"))
        )
        self.injected_at = time.monotonic()
        os.kill(target.pid, fault.signal)
        self.view.injected(
            f"{fault.describe} ({target.name}, pid {target.pid})", self.outcome.tokens, self.wanted
        )

    def _recovered(self) -> None:
        if self.outcome.recover_ms is None and self.injected_at is not None:
            seconds = time.monotonic() - self.injected_at
            self.outcome.recover_ms = round(seconds * 1000, 1)
            self.view.recovered(seconds)

    @property
    def pool(self) -> EnginePool:
        """The demo's only pool."""
        pool: EnginePool = self.supervisor["llm"]
        return pool

    async def watch(self, records: AsyncIterator[r.Record]) -> None:
        """Pass records on to the view and take the figures from them."""
        async for record in records:
            self.view.record(record)
            if isinstance(record, r.FaultSeen) and not self.outcome.root_cause:
                self.outcome.root_cause = str(record.fault.root)
                self.outcome.fault_class = str(record.fault.fault_class)
                self.outcome.as_expected = self.injection is not None and self.injection.found(record.fault)
            if isinstance(record, r.DecisionMade) and record.decision in {"restart", "retry_later"}:
                self.outcome.restarts += 1
                if self.outcome.detect_ms is None and self.injected_at is not None:
                    self.outcome.detect_ms = round((record.at - self.injected_at) * 1000, 1)
            if isinstance(record, r.StateChanged) and record.event == "started":
                self._note_processes()

    async def _compare(self, requests: list[DemoRequest]) -> None:
        """Run the same prompts without a fault, all together and one at a time, and compare."""
        sizes = dict.fromkeys((len(requests), 1))
        for size in sizes:
            self.view.stage(f"control: the same {len(requests)} prompts without a fault, {size} at a time")
            same = 0
            for first in range(0, len(requests), size):
                batch = range(first, min(first + size, len(requests)))
                params = [self._control_params(requests[n], self.streams[n]) for n in batch]
                results = await self.pool.generate_many([requests[n].prompt for n in batch], params)
                for n, result in zip(batch, results, strict=True):
                    comparison = compare(self.streams[n], result.token_ids, result.text)
                    same += comparison.good
                    if size == len(requests):
                        self.streams[n].comparison = comparison
                        self.outcome.completed += self.streams[n].finish_reason is not None
                        self.outcome.lost += comparison.lost
                        self.outcome.duplicated += comparison.duplicated
                        self.outcome.mismatched += comparison.mismatched
            self.outcome.control[str(size)] = same

    @staticmethod
    def _control_params(request: DemoRequest, stream: ReceivedStream) -> Mapping[str, Any]:
        return request.params if stream.seed is None else {**request.params, "seed": stream.seed}

    def _cold_start(self) -> float | None:
        info = self.supervisor.engine_info("llm/1")
        return None if info is None else round(info.startup_seconds, 2)

    def _note_processes(self) -> None:
        self.seen.update(process for _, process in self.supervisor.processes("llm/1"))


async def _left(seen: set[ProcessId], timeout: float) -> int:
    """Wait for processes to exit; return the number of those that are left after the timeout."""
    deadline = time.monotonic() + timeout
    while any(map(alive, seen)) and time.monotonic() < deadline:  # noqa: ASYNC110 - foreign processes have no event
        await anyio.sleep(0.1)
    return sum(map(alive, seen))
