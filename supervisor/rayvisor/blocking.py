"""A supervisor for blocking programs: its event loop runs in a thread, its methods are plain calls.

    with rv.run_in_thread(spec) as sup:
        for chunk in sup["llm"].generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")
        completions = sup["llm"].generate_many(prompts, {"max_tokens": 64})

Entering and leaving work as for [`Supervisor`][rayvisor.Supervisor], with one difference: nothing can cancel
a block of blocking code from outside. When the tree gives up, the next call raises, and leaving the block
raises ``SupervisorGaveUpError``, with that call's error as its ``__cause__``. SIGINT and SIGTERM do interrupt
the block, in the main thread: they raise KeyboardInterrupt and SystemExit.

Calls may come from any thread.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from rayvisor._core.protocol.wire import EngineInfo, ProcessId, Prompt
from rayvisor._core.requests.errors import RequestError
from rayvisor._core.requests.limits import OnWeightsChanged
from rayvisor._core.requests.results import Completion, GenerationChunk, Usage
from rayvisor._core.requests.stats import PoolStats
from rayvisor._core.supervision.calls import ChildCounts, ChildStatus
from rayvisor._runtime import signals
from rayvisor._runtime.broadcaster import RecordStream
from rayvisor._runtime.lifecycle import Hook
from rayvisor._runtime.operations import PauseMode
from rayvisor._runtime.pool.pool import EnginePool
from rayvisor._runtime.pool.streams import Generation
from rayvisor._runtime.session import only_follows
from rayvisor.errors import SupervisorStoppedError
from rayvisor.records import Record
from rayvisor.refs import ChildRef, ServerRef
from rayvisor.specs import ChildSpec, Instance, SupervisorSpec
from rayvisor.status import Node
from rayvisor.supervisor import Supervisor
from rayvisor.timeouts import Timeouts
from statecharts import Drawing

__all__ = [
    "BlockingGeneration",
    "BlockingPool",
    "BlockingRef",
    "BlockingServer",
    "BlockingSupervisor",
    "SupervisorOptions",
    "run_in_thread",
]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SupervisorOptions(TypedDict, total=False):
    """The keywords of [`Supervisor`][rayvisor.Supervisor] that `run_in_thread` passes on, described there."""

    address: str | None
    ray_options: Mapping[str, Any] | None
    local: bool
    seed: int | None
    call_limit: int
    control: str | os.PathLike[str] | bool | None
    publish: str | bool | None
    timeouts: Timeouts | None


def run_in_thread(
    spec: SupervisorSpec, *, handle_signals: bool = True, **options: Unpack[SupervisorOptions]
) -> BlockingSupervisor:
    """Make a supervisor for a blocking program: a context manager with the same methods, as plain calls.

    Parameters
    ----------
    spec
        The root supervisor and its children.
    handle_signals
        Whether SIGINT and SIGTERM end the block, and a second one kills everything immediately; only in the
        main thread.
    options
        As for [`Supervisor`][rayvisor.Supervisor].

    Examples
    --------
    >>> import anyio
    >>> import rayvisor as rv
    >>> async def tick() -> None:
    ...     await anyio.sleep_forever()
    >>> with rv.run_in_thread(rv.SupervisorSpec(children=[rv.coroutine("ticker", tick)])) as sup:
    ...     [child.id for child in sup.which_children()]
    ['ticker']
    """
    return BlockingSupervisor(
        Supervisor(spec, handle_signals=False, **options),
        handle_signals=handle_signals and signals.possible(),
    )


class BlockingSupervisor:
    """A [`Supervisor`][rayvisor.Supervisor] whose methods are plain calls; made by `run_in_thread`."""

    def __init__(self, supervisor: Supervisor, *, handle_signals: bool) -> None:
        self._supervisor = supervisor
        self._handle_signals = handle_signals
        self._stack = ExitStack()
        self._thread: _Thread | None = None
        self._held: Future[None] | None = None
        self._leave: Callable[[], object] = lambda: None
        self._leaving = False

    # --- the block ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise SupervisorStoppedError("")
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            self._thread = thread = _Thread(portal)
            if self._handle_signals:
                stack.enter_context(_Handlers(self._on_signal))
            up: Future[None] = Future()
            hold = thread.call(_Hold, self._supervisor, up)
            self._leave = hold.leave
            self._held = portal.start_task_soon(hold.run)
            try:
                up.result()
            except BaseException:
                self._end()
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            reason = self._end()
            if reason is not None and (error is None or only_follows(error)):
                raise reason from error

    def _end(self) -> BaseException | None:
        """End the tree, and wait; return why it had ended on its own."""
        self._leaving = True
        thread, held = self._thread, self._held
        if thread is None or held is None:
            return None
        if not held.done():
            thread.call(self._leave)
        try:
            return held.exception()
        finally:
            thread.over = True

    def _on_signal(self, number: int) -> None:
        if not self._leaving:
            self._leaving = True
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if self._thread is not None:
            self._thread.portal.start_task_soon(self._supervisor.kill)

    # --- looking --------------------------------------------------------------------------------

    @property
    def spec(self) -> SupervisorSpec:
        """As `Supervisor.spec`."""
        return self._supervisor.spec

    def __getitem__(self, path: str) -> Any:
        """Return a handle of the child at ``path``.

        A [`BlockingPool`][rayvisor.blocking.BlockingPool], a
        [`BlockingServer`][rayvisor.blocking.BlockingServer], or a
        [`BlockingRef`][rayvisor.blocking.BlockingRef].

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        found = self._running.call(self._supervisor.__getitem__, path)
        if isinstance(found, EnginePool):
            return BlockingPool(self._running, found)
        if isinstance(found, ServerRef):
            return BlockingServer(self._running, found)
        return BlockingRef(self._running, found)

    def pool(self, path: str) -> BlockingPool:
        """As `Supervisor.pool`."""
        return BlockingPool(self._running, self._running.call(self._supervisor.pool, path))

    def actor(self, path: str) -> BlockingRef:
        """As `Supervisor.actor`."""
        return BlockingRef(self._running, self._running.call(self._supervisor.actor, path))

    def server(self, path: str) -> BlockingServer:
        """As `Supervisor.server`."""
        return BlockingServer(self._running, self._running.call(self._supervisor.server, path))

    def engine_info(self, path: str) -> EngineInfo | None:
        """As `Supervisor.engine_info`."""
        return self._running.call(self._supervisor.engine_info, path)

    def processes(self, path: str) -> list[tuple[str, ProcessId]]:
        """As `Supervisor.processes`."""
        return self._running.call(self._supervisor.processes, path)

    def watch(self) -> Iterator[Record]:
        """Return an iterator of records: of all that happens from now on, until the tree has ended.

        May be called before the block is entered. The iterator can be read in a thread of its own.
        """
        return self._follow(self._supervisor.watch())

    def _follow(self, watch: RecordStream) -> Iterator[Record]:
        async def following() -> Record | None:
            return await anext(watch, None)

        while True:
            try:
                record = self._call(following)
            except SupervisorStoppedError:
                yield from watch.rest()  # nothing is added to it any more
                return
            if record is None:
                return
            yield record

    def on_enter(self, place: str, hook: Hook, *, chart: str = "engine") -> None:
        """As `Supervisor.on_enter`; ``hook`` is called in the supervisor's thread."""
        self._supervisor.on_enter(place, hook, chart=chart)

    def on_exit(self, place: str, hook: Hook, *, chart: str = "engine") -> None:
        """As `Supervisor.on_exit`; ``hook`` is called in the supervisor's thread."""
        self._supervisor.on_exit(place, hook, chart=chart)

    # --- OTP's calls ----------------------------------------------------------------------------

    def start_child(self, spec: ChildSpec | Instance | None = None, *, under: str = "") -> str | None:
        """As `Supervisor.start_child`."""
        return self._call(lambda: self._supervisor.start_child(spec, under=under))

    def terminate_child(self, path: str) -> None:
        """As `Supervisor.terminate_child`."""
        self._call(self._supervisor.terminate_child, path)

    def restart_child(self, path: str) -> None:
        """As `Supervisor.restart_child`."""
        self._call(self._supervisor.restart_child, path)

    def delete_child(self, path: str) -> None:
        """As `Supervisor.delete_child`."""
        self._call(self._supervisor.delete_child, path)

    def which_children(self, under: str = "") -> list[ChildStatus]:
        """As `Supervisor.which_children`."""
        return self._call(self._supervisor.which_children, under)

    def count_children(self, under: str = "") -> ChildCounts:
        """As `Supervisor.count_children`."""
        return self._call(self._supervisor.count_children, under)

    def get_childspec(self, path: str) -> ChildSpec:
        """As `Supervisor.get_childspec`."""
        return self._call(self._supervisor.get_childspec, path)

    def apply_spec(self, spec: SupervisorSpec, *, under: str = "") -> None:
        """As `Supervisor.apply_spec`."""
        self._call(lambda: self._supervisor.apply_spec(spec, under=under))

    # --- operating ----------------------------------------------------------------------------

    @property
    def control(self) -> Path | None:
        """As `Supervisor.control`."""
        return self._supervisor.control

    @property
    def publish_address(self) -> str | None:
        """As `Supervisor.publish_address`."""
        return self._supervisor.publish_address

    def status(self, path: str = "") -> Node:
        """As `Supervisor.status`."""
        return self._running.call(self._supervisor.status, path)

    def chart(self, path: str) -> Drawing:
        """As `Supervisor.chart`."""
        return self._running.call(self._supervisor.chart, path)

    def metrics(self) -> str:
        """As `Supervisor.metrics`."""
        return self._running.call(self._supervisor.metrics)

    def pause(self, path: str = "", *, mode: PauseMode = "wait", timeout: float = 60.0) -> int:
        """As `Supervisor.pause`."""
        return self._call(lambda: self._supervisor.pause(path, mode=mode, timeout=timeout))

    def resume(self, path: str = "") -> None:
        """As `Supervisor.resume`."""
        self._call(self._supervisor.resume, path)

    def restart(self, path: str = "") -> None:
        """As `Supervisor.restart`."""
        self._call(self._supervisor.restart, path)

    def mark_stale(self, path: str = "") -> None:
        """As `Supervisor.mark_stale`."""
        self._call(self._supervisor.mark_stale, path)

    def recovery_instructions(self, path: str = "") -> tuple[str, ...]:
        """As `Supervisor.recovery_instructions`."""
        return self._running.call(self._supervisor.recovery_instructions, path)

    def set_recovery_instruction(
        self,
        instruction: str,
        path: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        request_id: str = "",
        timeout: float = 60.0,
    ) -> dict[str, dict[str, Any]]:
        """As `Supervisor.set_recovery_instruction`."""
        return self._call(
            lambda: self._supervisor.set_recovery_instruction(
                instruction, path, params=params, request_id=request_id, timeout=timeout
            )
        )

    def stop(self) -> None:
        """End the tree in order, from any thread, and return immediately; the next call in the block raises.

        The block itself goes on to its end: nothing can cancel blocking code from outside.
        """
        self._call(self._supervisor.stop)

    def kill(self) -> None:
        """As `Supervisor.kill`; the next call in the block raises."""
        self._call(self._supervisor.kill)

    def serve_web(self, port: int = 0, *, host: str = "127.0.0.1", metrics: bool = True) -> str:
        """As `Supervisor.serve_web`, but returns the URL of the page."""
        return self._call(lambda: self._supervisor.serve_web(port, host=host, metrics=metrics)).url

    def _call(self, function: Callable[[Unpack[Ts]], Awaitable[T]], *arguments: *Ts) -> T:
        return self._running.call(function, *arguments)

    @property
    def _running(self) -> _Thread:
        if self._thread is None or self._held is None:
            raise SupervisorStoppedError("")
        return self._thread


class BlockingPool:
    """An [`EnginePool`][rayvisor.EnginePool] whose calls block."""

    def __init__(self, thread: _Thread, pool: EnginePool) -> None:
        self._thread = thread
        self._pool = pool

    @property
    def name(self) -> str:
        """Path of the pool."""
        return self._pool.name

    def generate(
        self,
        prompt: Prompt,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
    ) -> BlockingGeneration:
        """Send a request, and return its stream immediately; as `EnginePool.generate`."""
        generation = self._thread.call(
            lambda: self._pool.generate(
                prompt,
                params,
                timeout=timeout,
                max_attempts=max_attempts,
                on_divergence=on_divergence,
                on_weights_changed=on_weights_changed,
            )
        )
        return BlockingGeneration(self._thread, generation)

    @overload
    def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: Literal[False] = False,
    ) -> list[Completion]: ...

    @overload
    def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: Literal[True],
    ) -> list[Completion | RequestError]: ...

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        timeout: float | None = None,
        max_attempts: int | None = None,
        on_divergence: Literal["splice", "fail"] | None = None,
        on_weights_changed: OnWeightsChanged | None = None,
        return_errors: bool = False,
    ) -> Any:
        """Send a batch, and return its completions in the order of the prompts.

        As `EnginePool.generate_many`.
        """
        send: Any = self._pool.generate_many  # its overloads want a literal for return_errors
        return self._thread.call(
            lambda: send(
                prompts,
                params,
                timeout=timeout,
                max_attempts=max_attempts,
                on_divergence=on_divergence,
                on_weights_changed=on_weights_changed,
                return_errors=return_errors,
            )
        )

    def stats(self) -> PoolStats:
        """As `EnginePool.stats`."""
        return self._thread.call(self._pool.stats)


class BlockingGeneration:
    """The stream of one request: an iterator of chunks, and a context manager.

    Leaving the ``with`` block, ``close()``, or dropping the last reference aborts a request that has not
    finished. Leaving a ``for`` loop over ``pool.generate(...)`` early drops the last reference.
    """

    def __init__(self, thread: _Thread, generation: Generation) -> None:
        self._thread = thread
        self._generation = generation

    @property
    def request(self) -> str:
        """Id of the request, as in logs and errors."""
        return self._generation.request

    @property
    def usage(self) -> Usage:
        """Tokens used: so far while the request runs, in all afterwards."""
        return self._thread.call(lambda: self._generation.usage)

    @property
    def completion(self) -> Completion | None:
        """The complete result once the request has finished; None before."""
        return self._generation.completion

    def result(self) -> Completion:
        """Wait for the end of the request, and return the complete result; as `Generation.result`."""
        return self._thread.call(self._generation.result)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationChunk:
        chunk = self._thread.call(self._following)
        if chunk is None:
            raise StopIteration
        return chunk

    async def _following(self) -> GenerationChunk | None:
        try:
            return await anext(self._generation)
        except StopAsyncIteration:
            return None

    def close(self) -> None:
        """Stop reading. A request that has not ended is aborted in its engine."""
        self._thread.call(self._generation.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingRef:
    """A [`ChildRef`][rayvisor.ChildRef] whose calls block."""

    def __init__(self, thread: _Thread, ref: ChildRef) -> None:
        self._thread = thread
        self.path = ref.path
        self.ref = ref
        """The reference itself: it can be pickled and used in other processes."""

    def handle(self) -> Any:
        """Return Ray's handle of the current incarnation."""
        return self._thread.call(self.ref.handle)

    def options(
        self, *, idempotent: bool | EllipsisType = ..., timeout: float | EllipsisType | None = ...
    ) -> BlockingRef:
        """Return a reference whose calls have these options; as `ChildRef.options`."""
        return BlockingRef(self._thread, self.ref.options(idempotent=idempotent, timeout=timeout))

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method, and return its answer; as `ChildRef.call`."""
        return self._thread.call(lambda: self.ref.call(method, *args, **kwargs))


class _Hold:
    """The block of the asynchronous supervisor, held open until the blocking one is left."""

    def __init__(self, supervisor: Supervisor, up: Future[None]) -> None:
        self._supervisor = supervisor
        self._up = up
        self._scope = anyio.CancelScope()
        self._left = anyio.Event()

    def leave(self) -> None:
        """End the block, or the start of the tree."""
        self._left.set()
        if not self._up.done():
            self._scope.cancel()

    async def run(self) -> None:
        """Enter the block, report that it is entered, wait, and leave."""
        try:
            with self._scope:
                async with self._supervisor:
                    self._up.set_result(None)
                    await self._left.wait()
            if not self._up.done():
                self._up.set_exception(SupervisorStoppedError(""))
        except BaseException as error:
            if not self._up.done():
                self._up.set_exception(error)
                return  # the thread that waits for it raises it
            raise


class _Thread:
    """The thread of the event loop, to call into."""

    def __init__(self, portal: BlockingPortal) -> None:
        self.portal = portal
        self.over = False

    @overload
    def call(self, function: Callable[[Unpack[Ts]], Awaitable[T]], *arguments: *Ts) -> T: ...

    @overload
    def call(self, function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T: ...

    def call(self, function: Callable[[Unpack[Ts]], Any], *arguments: *Ts) -> Any:
        """Call a function there, await its result if need be, and return it.

        Raises
        ------
        SupervisorStoppedError
            The thread has ended.
        """
        try:
            return self.portal.call(function, *arguments)
        except (RuntimeError, CancelledError) as error:
            if self.over:
                raise SupervisorStoppedError("") from error
            raise


class _Handlers(AbstractContextManager[None]):
    """Signal handlers that are installed while a block lasts."""

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._restored = signals.restored()

    def __enter__(self) -> None:
        self._restored.__enter__()
        for number in signals.SIGNALS:
            signal.signal(number, lambda number, _: self._on_signal(number))

    def __exit__(self, *error: object) -> None:
        self._restored.__exit__(None, None, None)


class BlockingServer:
    """A [`ServerRef`][rayvisor.ServerRef] for a blocking program."""

    def __init__(self, thread: _Thread, ref: ServerRef) -> None:
        self._thread = thread
        self._ref = ref
        self.path = ref.path

    @property
    def url(self) -> str:
        """As `ServerRef.url`."""
        return self._thread.call(lambda: self._ref.url)

    def serving(self, timeout: float | None = None) -> str:
        """As `ServerRef.serving`."""
        return self._thread.call(self._ref.serving, timeout)
