"""The engine pools of a tree: created with their supervisors, updated as their engines change state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from anyio.abc import TaskGroup

from rayvisor._core.paths import contains, split
from rayvisor._core.requests.limits import RequestLimits
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.path_map import PathMap
from rayvisor._runtime.pool.pool import EnginePool
from rayvisor._runtime.pool.runtime import PoolRuntime
from rayvisor.specs import EnginePoolSpec
from rayvisor.status import is_up
from rayvisor.timeouts import DEFAULT_TIMEOUTS

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import HostItem
    from rayvisor._runtime.children.engines import EngineBackend
    from rayvisor._runtime.loop import Runtime
    from rayvisor.faults import Fault

__all__ = ["PoolRegistry"]

log = get_logger("rayvisor.pool")


class PoolRegistry:
    """Observes the effects of the core, so that routing is updated within each transition.

    Parameters
    ----------
    engines
        Transport to the engines.
    tasks
        Owner of the pools' tasks.
    rng
        Source of sampling seeds.
    on_useful
        Called with child and incarnation the first time that an incarnation does useful work.
    send_timeout
        Seconds that a host may take to accept a command.
    """

    def __init__(
        self,
        engines: EngineBackend,
        tasks: TaskGroup,
        rng: Random,
        on_useful: Callable[[str, int], None],
        *,
        send_timeout: float = DEFAULT_TIMEOUTS.runtime.send,
    ) -> None:
        self._send_timeout = send_timeout
        self._engines = engines
        self._tasks = tasks
        self._rng = rng
        self._on_useful = on_useful
        self._pools: PathMap[PoolRuntime] = PathMap()
        self._handles: dict[str, EnginePool] = {}
        # Supervisors that are stopping, or have stopped and not started again.
        self._stopping: PathMap[None] = PathMap()
        # Children that an operator restarts: their pools stay open meanwhile.
        self._restarting: list[str] = []

    def get(self, path: str) -> PoolRuntime | None:
        """Return the pool at this path."""
        return self._pools.get(path)

    def handle(self, path: str) -> EnginePool | None:
        """Return the handle of the pool at this path, for users."""
        return self._handles.get(path)

    def of(self, engine: str) -> PoolRuntime | None:
        """Return the pool that this engine is a member of."""
        return self._pools.get(split(engine)[0])

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Pass the items that an engine sent to its pool."""
        pool = self.of(child)
        if pool is not None:
            pool.items(child, incarnation, items)

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Report to the pool that items of an engine may have been lost."""
        pool = self.of(child)
        if pool is not None:
            pool.items_missing(child, incarnation, reason)

    def weights(self, child: str, incarnation: int, version: int) -> None:
        """Report to the pool which version of the weights an engine has from now on."""
        pool = self.of(child)
        if pool is not None:
            pool.weights(child, incarnation, version)

    def request_not_at_fault(self, child: str, incarnation: int) -> bool:
        """Whether a request in quarantine, and not the engine, is to blame if this incarnation ends now."""
        pool = self.of(child)
        return pool is not None and pool.in_quarantine(child, incarnation)

    def in_flight(self, child: str) -> int | None:
        """Return how many samples an engine has in flight; None if its pool does not know the engine."""
        pool = self.of(child)
        return (
            None
            if pool is None or pool.pausing.incarnation(child) is None
            else pool.pausing.in_flight((child,))
        )

    def observe(self, effect: m.Effect, runtime: Runtime) -> None:
        """Update the pools after an effect."""
        match effect:
            case m.SupervisorChanged():
                self._supervisor_changed(effect, runtime)
            case m.Changed(child):
                pool = self.of(child)
                if pool is not None:
                    self._engine_changed(pool, effect, runtime)
                elif effect.after.state == "DEAD" and split(child)[0] not in self._stopping:
                    # A child of a supervisor that is stopping may start again with it: its requests wait.
                    self._close(child, _last_fault(child, runtime))
            case m.Removed(child):
                for path in list(self._pools.below(child)):
                    del self._handles[path]
                    self._pools.pop(path).stop()
                for path in list(self._stopping.below(child)):
                    del self._stopping[path]
            case m.TreeEnded(exit=exit_):
                self._restarting.clear()
                self._close("", exit_.fault)
            case _:
                pass

    def _supervisor_changed(self, effect: m.SupervisorChanged, runtime: Runtime) -> None:
        if effect.state == "starting":
            self._stopping.pop(effect.path, None)
            supervisor = runtime.core.supervisors.get(effect.path)
            if supervisor is not None and isinstance(supervisor.spec, EnginePoolSpec):
                self._create(effect.path, supervisor.spec)
        elif effect.state == "stopping":
            self._stopping[effect.path] = None

    async def close(self) -> None:
        """Stop all pools: every request that is still open fails."""
        for path, pool in self._pools.items():
            try:
                pool.stop()
            except Exception:  # the other pools must be stopped all the same
                log.exception("close.failed", what=f"pool {path}")

    @contextmanager
    def restarting(self, child: str, runtime: Runtime) -> Iterator[None]:
        """Keep the pools at or below a child open while it is ended and started again."""
        self._restarting.append(child)
        try:
            yield
        finally:
            if child in self._restarting:  # otherwise the tree has ended meanwhile
                self._restarting.remove(child)
            for path in list(self._pools.below(child)):
                pool = runtime.core.children.get(path)
                if pool is not None and pool.configuration.state == "DEAD":  # it could not be started
                    self._close(path, _last_fault(path, runtime))

    def _close(self, child: str, fault: Fault | None) -> None:
        for path in list(self._pools.below(child)):
            if not any(contains(restarting, path) for restarting in self._restarting):
                self._pools[path].close(fault)

    def _create(self, path: str, spec: EnginePoolSpec) -> None:
        """Create a pool at the first start of its supervisor; it outlives every restart."""
        if path in self._pools:
            return
        limits = RequestLimits(
            queue_limit=spec.queue_limit,
            timeout=spec.request_timeout,
            max_attempts=spec.max_attempts,
            on_weights_changed=spec.on_weights_changed,
        )
        pool = self._pools[path] = PoolRuntime(
            self._engines,
            name=path,
            limits=limits,
            on_useful=self._on_useful,
            rng=Random(self._rng.getrandbits(64)),
            send_timeout=self._send_timeout,
        )
        self._handles[path] = EnginePool(pool)
        pool.start(self._tasks)

    def _engine_changed(self, pool: PoolRuntime, change: m.Changed, runtime: Runtime) -> None:
        child, incarnation = change.child, change.incarnation
        was_up = is_up(change.before.state)
        if is_up(change.after.state):
            info = self._engines.info(child, incarnation)
            if info is None:
                return  # it has ended meanwhile, and that is reported separately
            # Admission first: an engine that comes up paused or as a spare gets no request in between.
            pool.set_admission(child, is_open=change.after.leaf == "SERVING")
            if not was_up:
                pool.engine_up(child, incarnation, info)
            elif change.event == "stale":
                pool.mark_stale(child)
        elif was_up:
            pool.engine_down(child, incarnation, runtime.incarnations.fault(child, incarnation))


def _last_fault(child: str, runtime: Runtime) -> Fault | None:
    known = runtime.core.children.get(child)
    return None if known is None or known.exit is None else known.exit.fault
