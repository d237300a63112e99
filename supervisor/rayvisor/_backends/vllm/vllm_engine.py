"""One incarnation of a vLLM engine, around ``vllm.v1.engine.async_llm.AsyncLLM``.

vLLM's own view of its health is a flag in this process, which is set late or never. A stopped worker leaves
it healthy, and a ``generate`` that waits when the engine is shut down waits forever. So this module watches
the processes through pidfds, and ends every stream itself.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import structlog

from rayvisor._backends.host.engine import EngineError, EngineGoneError, EngineStatus, Report
from rayvisor._backends.host.log_files import temporary_log
from rayvisor._backends.host.log_reading import log_causes
from rayvisor._backends.host.phases import phase_of
from rayvisor._backends.host.post_mortem import describe_death, log_size, log_tail, read_log
from rayvisor._backends.host.shutdown import EngineStop, check_none_left, stop_if_start_fails
from rayvisor._backends.host.waiting import first_of
from rayvisor._backends.process.engine_tree import ProcessTree, new_tag
from rayvisor._backends.vllm import launch
from rayvisor._backends.vllm.fault_tolerance import FaultTolerance
from rayvisor._backends.vllm.lease import Lease, engine_cores_from
from rayvisor._backends.vllm.sockets import SocketFolder
from rayvisor._backends.vllm.streams import Streams
from rayvisor._backends.vllm.template import Template
from rayvisor._core.protocol.causes import Causes, plain_causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor.faults import Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["VllmEngine"]

log = structlog.get_logger("rayvisor.vllm")

_T = TypeVar("_T")

METHODS = (
    "add_lora",
    "collective_rpc",
    "finish_weight_update",
    "get_weight_version",
    "init_weight_transfer_engine",
    "is_paused",
    "is_sleeping",
    "list_loras",
    "pause_generation",
    "pin_lora",
    "remove_lora",
    "reset_mm_cache",
    "reset_prefix_cache",
    "resume_generation",
    "sleep",
    "start_weight_update",
    "update_weight_version",
    "update_weights",
    "wake_up",
)
"""Methods of vLLM's engine, other than requests, that may be called."""


class VllmEngine:
    """One incarnation of a vLLM engine.

    Parameters
    ----------
    incarnation
        Number of this start, from 1.
    arguments
        Fields of vLLM's ``AsyncEngineArgs``.
    log_file
        Its processes write their output to this file; by default a file in the temporary folder.
    timeouts
        Timeouts and intervals of the engine.
    """

    def __init__(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        log_file: str = "",
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._host_timeouts = timeouts.host
        self._timeouts = timeouts.vllm
        self._incarnation = incarnation
        self._arguments = dict(arguments)
        self._log_file = log_file or temporary_log("vllm")
        self._log_position = 0
        self._tree = ProcessTree(new_tag(), timeouts=timeouts.process)
        self._children: dict[int, BaseProcess] = {}
        # One thread for the whole incarnation: a child process may end with the thread that has started it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayvisor-vllm")
        self._step: asyncio.Future[Any] | None = None
        self._redirection = launch.Redirection(self._log_file)
        self._sockets = SocketFolder(timeouts=timeouts.vllm)
        self._lease: Lease | None = None
        self._template: Template | None = None
        self._llm: Any = None
        self._streams: Streams | None = None
        self._faults: FaultTolerance | None = None
        self._ended = asyncio.Event()
        self._shutdown = EngineStop(self._end)
        self._death: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._death_watch: asyncio.Task[None] | None = None

    def acquire_shared(self) -> Callable[[], None]:
        """Keep the template for later engines; see `SharesResources.acquire_shared`."""
        return Lease().close

    # -- method calls ---------------------------------------------------------------------------

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of vLLM's engine; one of `METHODS`, or of its fault tolerance."""
        if self._faults is not None and method == "get_status":
            return await self._faults.report()
        if self._faults is not None and method == "handle_fault":
            answer = await self._faults.handle(args[0])
            if answer["success"]:
                self._mark_log_position()  # a fault that it has recovered from does not explain its death
            return answer
        if method not in METHODS:
            raise EngineError(f"vLLM's engine has no method {method!r}; it has {', '.join(METHODS)}")
        if self._llm is None or self._ended.is_set():
            raise EngineGoneError("the engine does not run")
        call = getattr(self._llm, method, None)
        if call is None:
            raise EngineError(f"this version of vLLM has no method {method!r}")
        return await call(*args, **kwargs)

    async def status(self) -> EngineStatus:
        """Return the status that it reports; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        return EngineStatus("healthy") if self._faults is None else await self._faults.status()

    # -- starting -------------------------------------------------------------------------------

    async def start(self, report: Report) -> EngineInfo:
        """Start it, in steps; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        began = time.monotonic()
        async with stop_if_start_fails(self.stop, self._describe_failed_start):
            launch.check_arguments(self._arguments)
            launch.prepare_environment(self._tree.tag)
            report("importing", "vllm")
            version = await self._in_thread(self._import, lambda _: report("importing", "vllm"))
            report("launching", str(self._arguments["model"]))
            config = await self._in_thread(
                self._configure,
                lambda _: report("launching", "checking the arguments"),
            )
            self._llm = await self._in_thread(
                lambda: self._construct(config), lambda text: report(*phase_of(text))
            )
            await self._await_first_response()
            self._streams = Streams(self._llm, timeouts=self._timeouts)
            self._faults = FaultTolerance(self._llm)
            info = self._info(version, began)
        self._mark_log_position()
        self._death_watch = asyncio.create_task(self._watch_for_death())
        report("ready", "")
        return info

    def _mark_log_position(self) -> None:
        """Ignore the present contents of its log when a death is explained later."""
        self._log_position = log_size(self._log_file)

    async def _in_thread(self, step: Callable[[], _T], progress: Callable[[str], None]) -> _T:
        """Run one blocking step, unless a process dies or the start is cancelled meanwhile."""
        self._raise_if_stopping()
        future: asyncio.Future[_T] = asyncio.get_running_loop().run_in_executor(self._thread, step)
        self._step = future
        death = asyncio.create_task(self._tree.first_death())
        reported = time.monotonic()
        try:
            while not future.done():
                await asyncio.wait(
                    (future, death), timeout=self._timeouts.scan, return_when=asyncio.FIRST_COMPLETED
                )
                self._raise_if_stopping()
                await self._discover_processes()
                if self._tree.deaths and not future.done():
                    # vLLM notices it too, and its error is more specific, but may come late or never.
                    await asyncio.wait((future,), timeout=self._timeouts.error)
                    if not future.done():
                        raise EngineGoneError("a process of the engine ended while starting")
                if time.monotonic() - reported >= self._timeouts.progress:
                    reported = time.monotonic()
                    progress(await asyncio.to_thread(log_tail, self._log_file))
            return future.result()
        finally:
            death.cancel()
            self._redirection.off()
            if future.done() and not future.cancelled():
                future.exception()

    def _import(self) -> str:
        self._lease = Lease()
        # It imports in parallel.
        self._template = self._lease.template(self._arguments, self._log_file, timeouts=self._timeouts)
        return launch.vllm_version()

    def _configure(self) -> Any:
        return launch.engine_config(self._arguments)

    def _construct(self, config: Any) -> Any:
        self._sockets.use()
        self._redirection.on()
        forked = engine_cores_from(
            self._template, self._tree.tag, self._log_file, lambda: self._shutdown.requested
        )
        try:
            with forked:
                llm = launch.construct(config, self._arguments)
        finally:
            self._redirection.off()
        if self._shutdown.requested:
            llm.shutdown(timeout=0)
        return llm

    async def _discover_processes(self) -> None:
        await self._tree.scan()
        for child in multiprocessing.active_children():
            if child.pid is not None:
                self._children.setdefault(child.pid, child)
        if self._children and self._tree.alive():
            self._redirection.off()

    async def _await_first_response(self) -> None:
        """Begin to read the engine's output, and wait for its first response."""
        # Without it, vLLM's client would not notice a death before the first request.
        self._llm._run_output_handler()  # noqa: SLF001 - vLLM starts it with the first request only
        response = asyncio.ensure_future(self._llm.get_supported_tasks())
        await first_of(response, self._ended.wait(), self._tree.first_death())
        await self._discover_processes()
        self._raise_if_stopping()
        if not response.done() or self._tree.deaths:
            raise EngineGoneError("the engine ended while starting")
        response.result()

    def _info(self, version: str, began: float) -> EngineInfo:
        config = self._llm.vllm_config
        return EngineInfo(
            engine="vllm",
            version=version,
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            eos_token_ids=launch.eos_token_ids(self._llm),
            processes=self.processes(),
            startup_seconds=time.monotonic() - began,
            instructions=self._faults.instructions if self._faults is not None else (),
            recovery_timeout=self._faults.recovery_timeout if self._faults is not None else 0.0,
        )

    def _raise_if_stopping(self) -> None:
        if self._shutdown.requested:
            raise EngineGoneError("the engine was stopped while starting")

    async def _describe_failed_start(self, error: Exception) -> Termination:
        if self._tree.deaths and not self._shutdown.requested:
            outer = plain_causes(error) if not isinstance(error, EngineGoneError) else ()
            return await self._describe_death("starting", outer)
        text = await asyncio.to_thread(read_log, self._log_file)
        from_log, traceback = log_causes(text)
        number = None
        if self._shutdown.requested:
            from_log = ()
        elif killed := launch.killed_during_start(error):
            cause, number = killed
            from_log = (cause,)
        return Termination(
            causes=launch.start_causes(error, from_log),
            traceback=traceback,
            signal=number,
            phase="starting",
            log_file=self._log_file,
            permanent=launch.is_permanent(error),
        )

    # -- ending ---------------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """End it with its whole process tree, and verify that; see `Engine.stop`."""
        await self._shutdown(grace)

    async def _end(self) -> None:
        self._ended.set()
        if self._death_watch is not None:
            self._death_watch.cancel()
            self._death_watch = None
        self._tree.unwatch()
        self._end_streams("the engine was stopped")
        await self._tree.scan()
        cleanup = None
        if self._llm is not None:
            if self._llm.output_handler is not None:
                self._llm.output_handler.cancel()  # it would report a requested shutdown as a failure
            cleanup = self._begin_llm_shutdown(self._llm)
            await self._tree.all_gone(self._shutdown.kill_at)
        left = await self._tree.end(self._timeouts.kill, self._reap)
        # The current step, and vLLM's own cleanup, end soon after the processes.
        rest = [each for each in (self._step, cleanup) if each is not None and not each.done()]
        if rest:
            _, pending = await asyncio.wait(rest, timeout=self._timeouts.cleanup)
            for each in pending:
                log.warning("vllm.thread.left_over", incarnation=self._incarnation)
                each.add_done_callback(self._kill_late_children)
            left = await self._tree.end(self._timeouts.kill, self._reap)
        if self._llm is not None and cleanup is not None and cleanup.done():
            await self._release(self._llm)
        if not left:
            await asyncio.to_thread(self._sockets.remove)
        if self._lease is not None:
            await asyncio.to_thread(self._lease.close)
        self._tree.close()
        self._thread.shutdown(wait=False)
        self._llm = None
        check_none_left(left)

    def _begin_llm_shutdown(self, llm: Any) -> asyncio.Future[Any]:
        timeout = max(0.0, self._shutdown.kill_at() - time.monotonic())
        if not timeout:
            self._tree.kill()
        cleanup = asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: llm.shutdown(timeout=timeout)
        )
        cleanup.add_done_callback(_retrieve)
        return cleanup

    async def _release(self, llm: Any) -> None:
        """Free what vLLM leaves to the garbage collector; it would accumulate from start to start."""
        await asyncio.sleep(0)  # vLLM has scheduled a callback on this loop that closes the sockets
        released = asyncio.get_running_loop().run_in_executor(self._thread, lambda: launch.release(llm))
        released.add_done_callback(_retrieve)
        await asyncio.wait((released,), timeout=self._timeouts.release)

    def _kill_late_children(self, step: asyncio.Future[Any]) -> None:
        """Kill the processes that an abandoned step has started, once the step is done."""
        _retrieve(step)
        for child in multiprocessing.active_children():
            if child.pid in self._children:
                child.kill()

    async def _watch_for_death(self) -> None:
        flag = asyncio.create_task(self._watch_flag())
        try:
            await first_of(flag, self._ended.wait(), self._tree.first_death())
        finally:
            flag.cancel()
        if self._shutdown.requested:
            return
        self._ended.set()
        self._end_streams("the engine has died")
        died = await self._describe_death("serving", ())
        if not self._death.done():
            self._death.set_result(died)

    def _end_streams(self, message: str) -> None:
        if self._streams is not None:
            self._streams.end(message)

    async def _watch_flag(self) -> None:
        """Return when vLLM itself reports that its engine is dead, whether its processes are alive or not."""
        handler = self._llm.output_handler
        while not self._llm.errored:
            await asyncio.wait((handler,), timeout=self._timeouts.flag_poll)

    async def _describe_death(self, phase: str, outer: Causes) -> Termination:
        return await describe_death(
            self._tree,
            self._log_file,
            phase,
            self._exit_code,
            self._log_position,
            outer,
            timeouts=self._host_timeouts,
        )

    def _exit_code(self, pid: int) -> int | None:
        child = self._children.get(pid)
        return None if child is None else child.exitcode

    def _reap(self) -> None:
        for child in self._children.values():
            child.is_alive()  # reaps it if it has ended, without blocking

    async def died(self) -> Termination:
        """Wait until it has died, and return the cause."""
        return await asyncio.shield(self._death)

    def processes(self) -> tuple[ProcessId, ...]:
        """Return EngineCore, the workers, and all other processes that they have started."""
        return self._tree.processes

    # -- requests -------------------------------------------------------------------------------

    def generate(self, command: GenerateCommand) -> AsyncIterator[Chunk]:
        """Return the tokens of one request; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        if self._streams is None:
            raise EngineGoneError("the engine does not run")
        return self._streams.generate(command)

    async def abort(self, requests: Sequence[str]) -> None:
        """Abort these requests; their ``generate`` ends without a finish reason."""
        if self._streams is not None:
            await self._streams.abort(requests)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        error = future.exception()
        if error is not None:
            log.warning("vllm.thread.failed", error=f"{type(error).__name__}: {error}")
