"""The supervisor: a tree of children that are kept running for as long as a block of code lasts.

    async with rv.Supervisor(spec) as sup:
        async for chunk in sup["llm"].generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")

Entering starts the children in order and returns when all are up. Leaving ends them in the reverse
order, each within its shutdown time, however the block is left: at its end, by an exception, by
cancellation, by SIGINT (Ctrl-C) or SIGTERM. A second signal ends everything at once.

When the tree gives up, the block is cancelled and [`SupervisorGaveUp`][rayvisor.SupervisorGaveUp] is
raised, root cause first.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import structlog

from rayvisor import records as r
from rayvisor._core import messages as m
from rayvisor._core.calls import ChildCounts, ChildStatus
from rayvisor._runtime.carriers.actors import ActorBackend
from rayvisor._runtime.carriers.coroutines import CoroutineBackend
from rayvisor._runtime.carriers.engines import EngineBackend
from rayvisor._runtime.runtime import Runtime
from rayvisor._runtime.watchers import Watchers
from rayvisor.children import EnginePoolSpec
from rayvisor.errors import SpecError, StartFailed, SupervisorGaveUp, SupervisorStoppedError, UnknownChildError
from rayvisor.pool import EnginePool, RequestLimits
from rayvisor.reference import ChildRef
from rayvisor.specs import SupervisorSpec

if TYPE_CHECKING:
    from rayvisor._engine.link import HostPlace
    from rayvisor._engine.wire import EngineInfo, ProcessId
    from rayvisor._ray.actors import UserActorPlace
    from rayvisor._ray.cluster import RayCluster
    from rayvisor.specs import ChildSpec

__all__ = ["Supervisor"]

log = structlog.get_logger("rayvisor.supervisor")

CLOSE_SECONDS = 60.0
"""How long giving everything back may take once the tree has ended."""


class Supervisor:
    """Runs a tree of children while its ``async with`` block lasts.

    Parameters
    ----------
    spec
        The root supervisor and its children.
    address
        Ray cluster to attach to. None: the Ray this process is connected to, ``RAY_ADDRESS``, or a local
        Ray started for the time. Only a Ray started here is ever shut down.
    ray_options
        More arguments for ``ray.init`` where Ray is started here, for example ``{"num_cpus": 4}``.
    seed
        Seed of the jitter and of sampling seeds; None: from the system.
    call_limit
        How many calls may wait for the supervisor's answer.
    handle_signals
        Whether SIGINT and SIGTERM end the tree in order; only possible in the main thread.

    Raises
    ------
    SpecError
        When the spec is no SupervisorSpec.
    StartFailed
        On entering: a child could not be started; those that were have been stopped again.
    SupervisorGaveUp
        On leaving: the tree could not be kept up.

    Examples
    --------
    >>> import anyio
    >>> import rayvisor as rv
    >>> async def tick() -> None:
    ...     await anyio.sleep_forever()
    >>> async def main() -> None:
    ...     async with rv.Supervisor(rv.SupervisorSpec(children=[rv.coroutine("ticker", tick)])) as sup:
    ...         for child in await sup.which_children():
    ...             print(child.id, child.configuration)
    >>> anyio.run(main)
    ticker ALIVE.SERVING
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        address: str | None = None,
        ray_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        call_limit: int = 1000,
        handle_signals: bool = True,
    ) -> None:
        if not isinstance(spec, SupervisorSpec):
            raise SpecError("spec", spec, "must be a SupervisorSpec")
        self.spec = spec
        self._address = address
        self._ray_options = dict(ray_options or {})
        self._random = Random(seed)  # noqa: S311 - jitter and sampling, no secrets
        self._call_limit = call_limit
        self._handle_signals = handle_signals
        # Made here, so that a watch may begin before the tree does and see its start.
        self._watchers = Watchers(time.monotonic)
        self._pools: dict[str, EnginePool] = {}
        self._cluster: RayCluster | None = None
        self._cluster_lock = anyio.Lock()
        self._signal: int | None = None
        self._runtime: Runtime | None = None

    # --- the block ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._runtime is not None:
            raise SupervisorStoppedError("")
        self._group = await anyio.create_task_group().__aenter__()
        self._engines = EngineBackend(self._open_hosts, self._group, self, self._gpus)
        self._actors = ActorBackend(self._open_actors)
        backends = {
            "engine": self._engines,
            "actor": self._actors,
            "coroutine": CoroutineBackend(self._group),
        }
        self._runtime = runtime = Runtime(
            self.spec,
            self._random,
            self._group,
            backends,
            watchers=self._watchers,
            call_limit=self._call_limit,
            listener=self._on_effect,
        )
        try:
            if self._handle_signals and threading.current_thread() is threading.main_thread():
                await self._group.start(self._await_signals)
            for kind in sorted(_kinds(self.spec)):
                if kind in backends:
                    await backends[kind].open()
            self._make_pools("", self.spec)
            self._group.start_soon(runtime.run, name="supervisor")
            await runtime.settled.wait()
        except BaseException as error:
            await self._leave(error)
            raise
        if runtime.ended is not None or self._signal is not None:
            await self._leave(None)
            self._raise_for_end(None)
            raise SupervisorStoppedError("")  # pragma: no cover - an end always has a reason
        self._body = anyio.CancelScope()
        self._body.__enter__()
        self._group.start_soon(self._guard_body, name="end of the tree")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        # The block's own cancellation, by the end of the tree, ends here.
        left = None if self._body.__exit__(kind, error, traceback) else error
        if await self._leave(left):
            left = None
        self._raise_for_end(left)
        return error is not None and left is None

    async def _guard_body(self) -> None:
        """Cancel the block when the tree has ended by itself, or a signal came."""
        assert self._runtime is not None
        await self._runtime.over.wait()
        self._body.cancel()

    async def _leave(self, error: BaseException | None) -> bool:
        """End the tree and give everything back, whatever is being cancelled around it.

        Returns whether ``error`` was the cancellation of the supervisor's own tasks.
        """
        runtime = self._runtime
        assert runtime is not None
        with anyio.CancelScope(shield=True):
            if runtime.running and not runtime.over.is_set():
                runtime.post(m.Halt())
                await runtime.over.wait()  # bounded by the children's shutdown times, and by a second signal
            for pool in self._pools.values():
                pool.stop()
            with anyio.move_on_after(CLOSE_SECONDS) as closing:
                await self._engines.close()
                await self._actors.close()
                if self._cluster is not None:
                    await self._cluster.close()
            if closing.cancelled_caught:
                log.error("close.overdue", seconds=CLOSE_SECONDS)
        self._group.cancel_scope.cancel()
        trace = None if error is None else error.__traceback__
        return bool(await self._group.__aexit__(type(error) if error else None, error, trace))

    def _raise_for_end(self, error: BaseException | None) -> None:
        """Raise what the end of the tree asks for; the block's own error goes first."""
        if error is not None:
            return
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
        assert self._runtime is not None
        ended = self._runtime.ended
        if ended is None:
            return
        if not ended.started:
            raise StartFailed(ended.origin, ended.exit.fault)
        if ended.gave_up:
            raise SupervisorGaveUp(ended.origin, ended.gave_up, ended.exit.fault)

    async def _await_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        assert self._runtime is not None
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if self._signal is None:
                    self._signal = number
                    log.warning("signal", number=int(number), then="ending the tree; once more ends it at once")
                    self._runtime.post(m.Halt())
                else:
                    log.warning("signal", number=int(number), then="ending everything at once")
                    self._runtime.hurry()

    # --- looking ------------------------------------------------------------------------------

    def __getitem__(self, path: str) -> Any:
        """The child at ``path``: an [`EnginePool`][rayvisor.EnginePool], or a [`ChildRef`][rayvisor.ChildRef].

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        pool = self._pools.get(path)
        if pool is not None:
            return pool
        core = self._running.core
        if path not in core.children:
            raise UnknownChildError(path, tuple(core.children))
        return ChildRef(path, self._actors)

    def engine_info(self, path: str) -> EngineInfo | None:
        """What the engine at ``path`` said of itself when it came up; None while none is up there."""
        child = self._running.core.children.get(path)
        return None if child is None else self._engines.info(path, child.incarnation)

    def processes(self, path: str) -> list[tuple[str, ProcessId]]:
        """Processes of the engine at ``path`` and of its host, each with its role: ``host`` or ``engine``."""
        return self._engines.processes(path)

    def watch(self) -> AsyncIterator[r.Record]:
        """Records of everything that happens from now on; ends when the tree has ended.

        May be called before the block is entered: the start is seen, too.

        A watcher that reads slowly loses the oldest records and gets a ``RecordsMissed`` instead.
        """
        return self._watchers.watch()

    def on_enter(self, place: str, hook: Callable[[Any], object], *, chart: str = "engine") -> None:
        """Call ``hook`` whenever a child enters a state or leaf of its chart; it must not block."""
        self._running.machines[chart].on_enter(place, hook)

    def on_exit(self, place: str, hook: Callable[[Any], object], *, chart: str = "engine") -> None:
        """Call ``hook`` whenever a child leaves a state or leaf of its chart; it must not block."""
        self._running.machines[chart].on_exit(place, hook)

    # --- OTP's verbs ----------------------------------------------------------------------------

    async def start_child(self, spec: ChildSpec, *, under: str = "") -> str:
        """Add a child to the supervisor at path ``under`` and start it; returns its path.

        Raises
        ------
        SpecError, AlreadyStartedError, AlreadyPresentError, ChildStartError
            Nothing is kept of it then.
        """
        missing = _kinds(SupervisorSpec(children=[spec])) - _kinds(self.spec)
        for kind in missing & {"engine", "actor"}:
            await (self._engines if kind == "engine" else self._actors).open()
        if isinstance(spec.start, SupervisorSpec):
            self._make_pools(under, SupervisorSpec(children=[spec]))
        return cast("str", await self._running.call(m.Verb.START_CHILD, under, spec))

    async def terminate_child(self, path: str) -> None:
        """End a child by its shutdown; its spec stays (unless it is temporary)."""
        await self._running.call(m.Verb.TERMINATE_CHILD, *_split(path))

    async def restart_child(self, path: str) -> None:
        """Start a child that is down."""
        await self._running.call(m.Verb.RESTART_CHILD, *_split(path))

    async def delete_child(self, path: str) -> None:
        """Drop the spec of a child that is down."""
        await self._running.call(m.Verb.DELETE_CHILD, *_split(path))

    async def which_children(self, under: str = "") -> list[ChildStatus]:
        """The children of a supervisor, the last started first."""
        return cast("list[ChildStatus]", await self._running.call(m.Verb.WHICH_CHILDREN, under))

    async def count_children(self, under: str = "") -> ChildCounts:
        """How many specs, live children, supervisors and workers a supervisor has."""
        return cast("ChildCounts", await self._running.call(m.Verb.COUNT_CHILDREN, under))

    async def get_childspec(self, path: str) -> ChildSpec:
        """The spec of a child."""
        return cast("ChildSpec", await self._running.call(m.Verb.GET_CHILDSPEC, *_split(path)))

    async def pause(self, path: str) -> None:
        """Give a child, or everything under a supervisor, no new work until it is resumed."""
        await self._running.call(m.Verb.PAUSE, *_split(path))

    async def resume(self, path: str) -> None:
        """Take back a pause."""
        await self._running.call(m.Verb.RESUME, *_split(path))

    # --- what engines say (EngineReports) -----------------------------------------------------------

    def items(self, child: str, incarnation: int, items: Any) -> None:
        """Pass what an engine sent to its pool."""
        pool = self._pool_of(child)
        if pool is not None:
            pool.items(child, incarnation, items)

    def phase(self, child: str, phase: Any) -> None:
        """Tell watchers how far a start is."""
        self._watchers.tell(
            r.StartProgressed(
                at=anyio.current_time(),
                child=child,
                incarnation=phase.incarnation,
                phase=phase.phase,
                detail=phase.detail,
                elapsed=phase.elapsed,
            )
        )
        log.info("start.progress", child=child, phase=phase.phase, detail=phase.detail, elapsed=round(phase.elapsed, 1))

    def condition(self, child: str, incarnation: int, event: str) -> None:
        """Pass a change of an engine's condition to the core."""
        self._running.post(m.Reported(child, incarnation, event))

    # --- pools ----------------------------------------------------------------------------------------

    def _make_pools(self, under: str, spec: SupervisorSpec) -> None:
        for child in spec.children:
            path = f"{under}/{child.id}" if under else child.id
            if isinstance(child.start, EnginePoolSpec) and path not in self._pools:
                limits = RequestLimits(
                    queue_limit=child.start.queue_limit,
                    deadline=child.start.deadline,
                    attempts=child.start.attempts,
                )
                pool = EnginePool(
                    self._engines,
                    name=path,
                    limits=limits,
                    on_useful=self._on_useful,
                    rng=Random(self._random.getrandbits(64)),  # noqa: S311 - sampling seeds, no secrets
                )
                pool.start(self._group)
                self._pools[path] = pool
            elif isinstance(child.start, SupervisorSpec):
                self._make_pools(path, child.start)

    def _pool_of(self, child: str) -> EnginePool | None:
        return self._pools.get(child.rpartition("/")[0])

    def _on_useful(self, child: str, incarnation: int) -> None:
        self._running.post(m.Progressed(child, incarnation))

    def _on_effect(self, effect: m.Effect) -> None:
        """Move a pool's gates with its engines' states: routing is part of the transition."""
        if isinstance(effect, m.Changed):
            pool = self._pool_of(effect.child)
            if pool is not None:
                self._gate(pool, effect)
            elif effect.child in self._pools and effect.after.state == "DEAD":
                self._pools[effect.child].close(self._why_dead(effect.child))
        elif isinstance(effect, m.Forgotten) and effect.child in self._pools:
            self._pools.pop(effect.child).stop()
        elif isinstance(effect, m.TreeEnded):
            for pool in self._pools.values():
                pool.close(effect.exit.fault)

    def _why_dead(self, child: str) -> Any:
        node = self._running.core.children.get(child)
        return None if node is None or node.exit is None else node.exit.fault

    def _gate(self, pool: EnginePool, change: m.Changed) -> None:
        was_up = change.before.state in {"ALIVE", "PAUSED"}
        is_up = change.after.state in {"ALIVE", "PAUSED"}
        if is_up:
            info = self._engines.info(change.child, change.incarnation)
            if info is None:
                return
            if not was_up:
                pool.engine_up(change.child, change.incarnation, info)
            pool.gate(change.child, is_open=change.after.leaf == "SERVING")
        elif was_up:
            pool.engine_down(
                change.child, change.incarnation, self._running.fault(change.child, change.incarnation)
            )

    # --- Ray --------------------------------------------------------------------------------------------

    async def _connect(self) -> RayCluster:
        async with self._cluster_lock:
            if self._cluster is None:
                from rayvisor._ray.cluster import RayCluster  # noqa: PLC0415 - imports nothing heavy until used

                self._cluster = await RayCluster.connect(self._address, options=self._ray_options or None)
            return self._cluster

    async def _open_hosts(self) -> HostPlace:
        from rayvisor._ray.hosts import RayPlace  # noqa: PLC0415 - only trees with engines need it

        return cast("HostPlace", RayPlace(await self._connect()))

    async def _open_actors(self) -> UserActorPlace:
        from rayvisor._ray.actors import UserActorPlace  # noqa: PLC0415 - only trees with actors need it

        return UserActorPlace(await self._connect())

    @staticmethod
    def _gpus(arguments: Mapping[str, Any]) -> float:
        from rayvisor._ray.options import engine_gpus  # noqa: PLC0415 - as above

        return engine_gpus(arguments)

    @property
    def _running(self) -> Runtime:
        if self._runtime is None:
            raise SupervisorStoppedError("")
        return self._runtime


def _split(path: str) -> tuple[str, str]:
    above, _, identity = path.rpartition("/")
    return above, identity


def _kinds(spec: SupervisorSpec) -> set[str]:
    """Kinds of backends that a tree needs."""
    kinds: set[str] = set()
    for child in spec.children:
        if isinstance(child.start, SupervisorSpec):
            kinds |= _kinds(child.start)
        else:
            kinds.add(child.start.kind)
    return kinds
