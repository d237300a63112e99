"""A supervisor for blocking programs: its event loop runs in a thread, its verbs are plain calls.

    with rv.run_in_thread(spec) as sup:
        for chunk in sup["llm"].generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")
        completions = sup["llm"].generate_many(prompts, {"max_tokens": 64})

Everything that [`Supervisor`][rayvisor.Supervisor] says of entering and leaving holds here, too, with one
difference: nothing can cancel a block of blocking code from outside. When the tree gives up, its next call
raises, and leaving the block raises ``SupervisorGaveUp``, with that call's error as its ``__cause__``.
SIGINT and SIGTERM do interrupt it, in the main thread: they raise KeyboardInterrupt and SystemExit.

Calls may come from any thread.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from rayvisor._runtime import signals
from rayvisor.errors import SupervisorStoppedError
from rayvisor.pool import EnginePool
from rayvisor.supervisor import Supervisor, only_follows

if TYPE_CHECKING:
    from rayvisor._core.calls import ChildCounts, ChildStatus
    from rayvisor._engine.wire import Prompt
    from rayvisor.pool import Completion, Generation, GenerationChunk, PoolStats, RequestError, Usage
    from rayvisor.records import Record
    from rayvisor.reference import ChildRef
    from rayvisor.specs import ChildSpec, Instance, SupervisorSpec

__all__ = ["BlockingGeneration", "BlockingPool", "BlockingRef", "BlockingSupervisor", "run_in_thread"]

T = TypeVar("T")


def run_in_thread(spec: SupervisorSpec, *, handle_signals: bool = True, **options: Any) -> BlockingSupervisor:
    """Make a supervisor for a blocking program: a context manager with the same verbs, as plain calls.

    Parameters
    ----------
    spec
        The root supervisor and its children.
    handle_signals
        Whether SIGINT and SIGTERM end the block, and a second one everything at once; only in the main
        thread.
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
    """A [`Supervisor`][rayvisor.Supervisor] whose verbs are plain calls; `run_in_thread` makes it."""

    def __init__(self, supervisor: Supervisor, *, handle_signals: bool) -> None:
        self._supervisor = supervisor
        self._handle_signals = handle_signals
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._held: Future[None] | None = None
        self._leave: Callable[[], object] = lambda: None
        self._leaving = False

    # --- the block ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._portal is not None:
            raise SupervisorStoppedError("")
        with ExitStack() as stack:
            self._portal = portal = stack.enter_context(start_blocking_portal("asyncio"))
            if self._handle_signals:
                stack.enter_context(_Handlers(self._heard))
            scope = portal.call(anyio.CancelScope)
            self._leave = scope.cancel
            up: Future[None] = Future()
            self._held = portal.start_task_soon(self._hold, scope, up)
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

    async def _hold(self, scope: anyio.CancelScope, up: Future[None]) -> None:
        """Be the block of the asynchronous supervisor, until it is left or the tree has ended."""
        try:
            with scope:
                async with self._supervisor:
                    up.set_result(None)
                    await anyio.sleep_forever()
            if not up.done():
                up.set_exception(SupervisorStoppedError(""))
        except BaseException as error:
            if not up.done():
                up.set_exception(error)
                return  # who waits for it raises it
            raise

    def _end(self) -> BaseException | None:
        """End the tree, and wait; return why it had ended by itself."""
        self._leaving = True
        portal, held = self._portal, self._held
        if portal is None or held is None:
            return None
        if not held.done():
            portal.call(self._leave)
        return held.exception()

    def _heard(self, number: int) -> None:
        if not self._leaving:
            self._leaving = True
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if self._portal is not None:
            self._portal.start_task_soon(self._supervisor.hurry)

    # --- looking --------------------------------------------------------------------------------

    def __getitem__(self, path: str) -> Any:
        """Return the [`BlockingPool`][rayvisor.blocking.BlockingPool] at ``path``, or a reference.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        found = self._running.call(self._supervisor.__getitem__, path)
        if isinstance(found, EnginePool):
            return BlockingPool(self._running, found)
        return BlockingRef(self._running, found)

    def watch(self) -> Iterator[Record]:
        """Records of everything that happens from now on; ends when the tree has ended."""
        watch = self._supervisor.watch()

        async def following() -> Record | None:
            return await anext(watch, None)

        while True:
            record = self._call(following)
            if record is None:
                return
            yield record

    def on_enter(self, place: str, hook: Callable[[Any], object], *, chart: str = "engine") -> None:
        """Call ``hook``, in the supervisor's thread, whenever a child enters a state or leaf."""
        self._supervisor.on_enter(place, hook, chart=chart)

    def on_exit(self, place: str, hook: Callable[[Any], object], *, chart: str = "engine") -> None:
        """Call ``hook``, in the supervisor's thread, whenever a child leaves a state or leaf."""
        self._supervisor.on_exit(place, hook, chart=chart)

    # --- OTP's verbs ----------------------------------------------------------------------------

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

    def pause(self, path: str) -> None:
        """As `Supervisor.pause`."""
        self._call(self._supervisor.pause, path)

    def resume(self, path: str) -> None:
        """As `Supervisor.resume`."""
        self._call(self._supervisor.resume, path)

    def _call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return self._running.call(function, *arguments)

    @property
    def _running(self) -> BlockingPortal:
        if self._portal is None or self._held is None:
            raise SupervisorStoppedError("")
        return self._portal


class BlockingPool:
    """An [`EnginePool`][rayvisor.EnginePool] whose calls block."""

    def __init__(self, portal: BlockingPortal, pool: EnginePool) -> None:
        self._portal = portal
        self._pool = pool

    def generate(
        self, prompt: Prompt, params: Mapping[str, Any] | None = None, **options: Any
    ) -> BlockingGeneration:
        """Send a request, and return its stream at once; as `EnginePool.generate`."""
        generation = self._portal.call(lambda: self._pool.generate(prompt, params, **options))
        return BlockingGeneration(self._portal, generation)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Completion | RequestError]:
        """Send a batch, and return its completions in order; as `EnginePool.generate_many`."""
        return cast(
            "list[Completion | RequestError]",
            self._portal.call(lambda: self._pool.generate_many(prompts, params, **options)),
        )

    def stats(self) -> PoolStats:
        """Count what waits, what runs, and what has been done."""
        return self._portal.call(self._pool.stats)


class BlockingGeneration:
    """The stream of one request: an iterator of chunks, and a context manager.

    Leaving the ``with`` block, ``close()``, or dropping the last reference aborts a request that has not
    finished; a ``for`` loop over ``pool.generate(...)`` that is left early does so by the last of these.
    """

    def __init__(self, portal: BlockingPortal, generation: Generation) -> None:
        self._portal = portal
        self._generation = generation

    @property
    def request(self) -> str:
        """Id of the request, as logs and errors have it."""
        return self._generation.request

    @property
    def usage(self) -> Usage:
        """Tokens used: so far while it runs, all of them afterwards."""
        return self._portal.call(lambda: self._generation.usage)

    @property
    def completion(self) -> Completion | None:
        """The whole of it, once it has finished."""
        return self._generation.completion

    def result(self) -> Completion:
        """Wait for its end and return the whole of it; as `Generation.result`."""
        return self._portal.call(self._generation.result)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationChunk:
        chunk = self._portal.call(self._following)
        if chunk is None:
            raise StopIteration
        return chunk

    async def _following(self) -> GenerationChunk | None:
        try:
            return await anext(self._generation)
        except StopAsyncIteration:
            return None

    def close(self) -> None:
        """Stop reading: a request that has not ended is aborted in its engine."""
        self._portal.call(self._generation.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingRef:
    """A [`ChildRef`][rayvisor.ChildRef] whose calls block."""

    def __init__(self, portal: BlockingPortal, ref: ChildRef) -> None:
        self._portal = portal
        self.path = ref.path
        self.ref = ref
        """The reference itself: it can be pickled and used in other processes."""

    def handle(self) -> Any:
        """Ray's handle of the present incarnation."""
        return self._portal.call(self.ref.handle)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method; as `ChildRef.call`."""
        return self._portal.call(lambda: self.ref.call(method, *args, **kwargs))


class _Handlers(AbstractContextManager[None]):
    """Signal handlers for the time of a block."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard
        self._restored = signals.restored()

    def __enter__(self) -> None:
        self._restored.__enter__()
        for number in signals.SIGNALS:
            signal.signal(number, lambda number, _: self._heard(number))

    def __exit__(self, *error: object) -> None:
        self._restored.__exit__(None, None, None)
