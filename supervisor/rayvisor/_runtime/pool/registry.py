"""The pools of a tree: made with their supervisors, gated by their engines' states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from anyio.abc import TaskGroup

from rayvisor._core.requests.limits import RequestLimits
from rayvisor._core.supervision import messages as m
from rayvisor._runtime.pool.pool import EnginePool
from rayvisor.specs import EnginePoolSpec

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import HostItem
    from rayvisor._runtime.children.engines import EngineBackend
    from rayvisor._runtime.loop import Runtime
    from rayvisor.faults import Fault

__all__ = ["Pools"]

_UP = frozenset({"ALIVE", "PAUSED"})


class Pools:
    """Follows the effects of the core, so that routing is part of each transition.

    Parameters
    ----------
    engines
        How engines are reached.
    tasks
        Owner of the pools' tasks.
    rng
        Where sampling seeds come from.
    on_useful
        Called with child and incarnation when an engine has done useful work for the first time.
    """

    def __init__(
        self, engines: EngineBackend, tasks: TaskGroup, rng: Random, on_useful: Callable[[str, int], None]
    ) -> None:
        self._engines = engines
        self._tasks = tasks
        self._rng = rng
        self._on_useful = on_useful
        self._pools: dict[str, EnginePool] = {}
        # Supervisors that are ending, or have ended and not started again.
        self._ending: set[str] = set()
        # Children that are ended by hand to be started again.
        self._awaited: list[str] = []

    def get(self, path: str) -> EnginePool | None:
        """The pool at this path."""
        return self._pools.get(path)

    def of(self, engine: str) -> EnginePool | None:
        """The pool that this engine is a member of."""
        return self._pools.get(_parent(engine))

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Pass on what an engine sent."""
        pool = self.of(child)
        if pool is not None:
            pool.items(child, incarnation, items)

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Pass on that something an engine sent may be lost."""
        pool = self.of(child)
        if pool is not None:
            pool.items_missing(child, incarnation, reason)

    def weights(self, child: str, incarnation: int, version: int) -> None:
        """Pass on which weights an engine has from now on."""
        pool = self.of(child)
        if pool is not None:
            pool.weights(child, incarnation, version)

    def request_not_at_fault(self, child: str, incarnation: int) -> bool:
        """Whether a request in quarantine, and not the engine, is to blame if this incarnation ends now."""
        pool = self.of(child)
        return pool is not None and pool.quarantines(child, incarnation)

    def follow(self, effect: m.Effect, runtime: Runtime) -> None:
        """Do what an effect means for the pools."""
        match effect:
            case m.SupervisorChanged():
                self._supervisor_changed(effect, runtime)
            case m.Changed(child):
                pool = self.of(child)
                if pool is not None:
                    self._gate(pool, effect, runtime)
                elif effect.after.state == "DEAD" and _parent(child) not in self._ending:
                    # Under a supervisor that ends itself it may come back with that, and its requests wait.
                    self._close(child, _why(child, runtime))
            case m.Removed(child):
                for path in self._at_or_below(child):
                    self._pools.pop(path).stop()
                self._ending = {path for path in self._ending if not _within(path, child)}
            case m.TreeEnded(exit=exit_):
                self._awaited.clear()
                self._close("", exit_.fault)
            case _:
                pass

    def _supervisor_changed(self, effect: m.SupervisorChanged, runtime: Runtime) -> None:
        if effect.state == "starting":
            self._ending.discard(effect.path)
            supervisor = runtime.core.supervisors.get(effect.path)
            if supervisor is not None and isinstance(supervisor.spec, EnginePoolSpec):
                self._make(effect.path, supervisor.spec)
        elif effect.state == "stopping":
            self._ending.add(effect.path)

    def stop(self) -> None:
        """End every request that is still open."""
        for pool in self._pools.values():
            pool.stop()

    def _at_or_below(self, child: str) -> list[str]:
        return [path for path in self._pools if _within(path, child)]

    @contextmanager
    def awaited(self, child: str, runtime: Runtime) -> Iterator[None]:
        """Let the requests of the pools at or below a child wait while it is ended and started again."""
        self._awaited.append(child)
        try:
            yield
        finally:
            if child in self._awaited:  # else the tree has ended meanwhile
                self._awaited.remove(child)
            for path in self._at_or_below(child):
                pool = runtime.core.children.get(path)
                if pool is not None and pool.configuration.state == "DEAD":  # it could not be started
                    self._close(path, _why(path, runtime))

    def _close(self, child: str, fault: Fault | None) -> None:
        for path in self._at_or_below(child):
            if not any(_within(path, above) for above in self._awaited):
                self._pools[path].close(fault)

    def _make(self, path: str, spec: EnginePoolSpec) -> None:
        """Make the front of a pool at its supervisor's first start; it outlives every restart."""
        if path in self._pools:
            return
        limits = RequestLimits(
            queue_limit=spec.queue_limit,
            timeout=spec.request_timeout,
            max_attempts=spec.max_attempts,
            on_weights_changed=spec.on_weights_changed,
        )
        pool = self._pools[path] = EnginePool(
            self._engines,
            name=path,
            limits=limits,
            on_useful=self._on_useful,
            rng=Random(self._rng.getrandbits(64)),
        )
        pool.start(self._tasks)

    def _gate(self, pool: EnginePool, change: m.Changed, runtime: Runtime) -> None:
        child, incarnation = change.child, change.incarnation
        was_up, is_up = change.before.state in _UP, change.after.state in _UP
        if is_up:
            info = self._engines.info(child, incarnation)
            if info is None:
                return  # it has ended meanwhile, and that is on its way
            # The gate first: an engine that comes up paused or as a spare gets nothing in between.
            pool.gate(child, is_open=change.after.leaf == "SERVING")
            if not was_up:
                pool.engine_up(child, incarnation, info)
            elif change.event == "stale":
                pool.stale(child)
        elif was_up:
            pool.engine_down(child, incarnation, runtime.incarnations.fault(child, incarnation))


def _within(path: str, child: str) -> bool:
    """Whether a path is the child's, or leads to something below it; the root is above all."""
    return not child or path == child or path.startswith(f"{child}/")


def _parent(child: str) -> str:
    return child.rpartition("/")[0]


def _why(child: str, runtime: Runtime) -> Fault | None:
    known = runtime.core.children.get(child)
    return None if known is None or known.exit is None else known.exit.fault
