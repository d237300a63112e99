"""One run of a tree, from opening its environment to closing everything again, in a task of its own.

The task is its own so that a cancellation around the user's block does not reach it: the tree ends in order,
whatever ends the block.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, TypeVar

import anyio

from rayvisor._core.protocol.wire import Worked
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime import signals
from rayvisor._runtime.children.actors import ActorBackend
from rayvisor._runtime.children.coroutines import CoroutineBackend
from rayvisor._runtime.children.engines import EngineBackend
from rayvisor._runtime.children.subtrees import SubtreeBackend
from rayvisor._runtime.deadlines import outlast
from rayvisor._runtime.environment import kinds
from rayvisor._runtime.loop import Runtime
from rayvisor._runtime.pause_hooks import PauseHooks
from rayvisor._runtime.pool.registry import PoolRegistry
from rayvisor._runtime.readiness_gates import ReadinessGates
from rayvisor.errors import RayvisorError, StartFailedError, SupervisorGaveUpError
from rayvisor.faults import Cause, Fault, FaultClass
from rayvisor.specs import SupervisorSpec
from rayvisor.status import ChildKind
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import Condition, HostItem, Phase
    from rayvisor._runtime.broadcaster import RecordBroadcaster
    from rayvisor._runtime.children.protocol import ChildBackend
    from rayvisor._runtime.environment import Environment
    from rayvisor._runtime.lifecycle import LifecycleMachine
    from rayvisor._runtime.reporting import EventReporter

__all__ = ["Session", "only_follows", "reason_of"]

T = TypeVar("T")
log = get_logger("rayvisor.supervisor")


class Session:
    """Runs a tree once.

    Parameters
    ----------
    spec
        The root supervisor.
    environment
        Opens what the children run on.
    rng
        Source of jitter and sampling seeds.
    broadcaster, reporter
        Distribute the records, and report to it.
    machines
        The lifecycle machines, by chart.
    call_limit
        How many calls may wait for their answer.
    handle_signals
        Whether SIGINT and SIGTERM end the tree.
    timeouts
        Timeouts of the runtime and of everything that it opens.
    """

    def __init__(  # noqa: PLR0913 - keywords, each of its own meaning
        self,
        spec: SupervisorSpec,
        *,
        environment: Environment,
        rng: Random,
        broadcaster: RecordBroadcaster,
        reporter: EventReporter,
        machines: Mapping[str, LifecycleMachine],
        call_limit: int,
        handle_signals: bool,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._spec = spec
        self._environment = environment
        self._rng = rng
        self._broadcaster = broadcaster
        self._reporter = reporter
        self._machines = machines
        self._call_limit = call_limit
        self._handle_signals = handle_signals and signals.possible()
        self._opening = anyio.CancelScope()
        self._halted = False
        self._engines: EngineBackend | None = None
        self._actors: ActorBackend | None = None
        self._pools: PoolRegistry | None = None
        self._runtime: Runtime | None = None
        self.timeouts = timeouts
        """The timeouts of the tree."""
        self.began = time.monotonic()
        """When this run began."""
        self._signalled_at = 0.0
        self.signal: int | None = None
        """The signal that ended the tree."""
        self.error: BaseException | None = None
        """Why the environment could not be opened, or a defect that ended the session."""
        self.settled = anyio.Event()
        """The tree is up, or does not come up."""
        self.over = anyio.Event()
        """The tree has ended."""
        self.dismissed = anyio.Event()
        """The user's block must end: the tree has ended, or a signal came."""
        self.released = anyio.Event()
        """Nothing is left of the tree but tasks that ignore their cancellation."""
        self.closed = anyio.Event()
        """Nothing is left of the tree."""

    # --- for the supervisor ---------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """The runtime; there is one once the session has settled without an error."""
        return _present(self._runtime)

    @property
    def pools(self) -> PoolRegistry:
        """The engine pools."""
        return _present(self._pools)

    @property
    def engines(self) -> EngineBackend:
        """The backend of engines and servers."""
        return _present(self._engines)

    @property
    def actors(self) -> ActorBackend:
        """The backend of users' actors."""
        return _present(self._actors)

    @property
    def begun(self) -> bool:
        """Whether there is a tree to read; it may still be coming up."""
        return self._pools is not None

    @property
    def ended(self) -> m.TreeEnded | None:
        """The end of the tree, once it has ended."""
        return None if self._runtime is None else self._runtime.ended

    @property
    def halted(self) -> bool:
        """Whether the tree was asked to end."""
        return self._halted

    def halt(self) -> None:
        """Have the tree end, in order."""
        if not self._halted and not self.over.is_set():
            self._halted = True
            self._opening.cancel()
            if self._runtime is not None:
                self._runtime.post(m.Halt())

    def stop(self) -> None:
        """End the tree, in order, and the user's block with it."""
        self.dismissed.set()
        self.halt()

    def kill(self) -> None:
        """End everything immediately."""
        self.halt()
        if self._runtime is not None:
            self._runtime.kill()

    async def open(self, spec: SupervisorSpec) -> None:
        """Open what these children need, where it is not open yet."""
        self._environment.check(spec)
        for kind in sorted(kinds(spec)):
            backend = self._backends.get(kind)
            if backend is not None:
                await backend.open()

    # --- the run ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Open, run and close. It never raises: ``error`` has what went wrong."""
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    await self._run(tasks)
                except Exception as error:  # noqa: BLE001 - raised in the task that waits for the session
                    self.error = error
                finally:  # also when a task of the group fails, or this one is cancelled
                    for event in (self.settled, self.over, self.dismissed):
                        event.set()
                    self._broadcaster.close()
                    with anyio.CancelScope(shield=True):
                        await self._close()
                    self.released.set()
                tasks.cancel_scope.cancel()
        except BaseException as error:  # noqa: BLE001 - a defect: raised in the task that waits for the session
            self.error = self.error or error
        finally:
            for event in (self.settled, self.over, self.dismissed, self.released, self.closed):
                event.set()

    async def _run(self, tasks: anyio.abc.TaskGroup) -> None:
        if self._handle_signals:
            await tasks.start(self._listen)
        environment, timeouts = self._environment, self.timeouts.runtime
        self._engines = EngineBackend(environment.hosts, tasks, self, environment.gpus, timeouts=timeouts)
        self._actors = ActorBackend(environment.actors, self, timeouts=timeouts)
        self._backends: Mapping[str, ChildBackend] = {
            ChildKind.ENGINE: self._engines,
            ChildKind.SERVER: self._engines,
            ChildKind.ACTOR: self._actors,
            ChildKind.ADOPT: self._actors,
            ChildKind.COROUTINE: CoroutineBackend(tasks, timeouts=timeouts),
            ChildKind.SUPERVISOR: SubtreeBackend(self.open),
        }
        with self._opening:
            await self.open(self._spec)
        self._runtime = runtime = Runtime(
            self._spec,
            self._rng,
            tasks,
            self._backends,
            machines=self._machines,
            reporter=self._reporter,
            call_limit=self._call_limit,
            observer=self,
            timeouts=timeouts,
        )
        self._pools = PoolRegistry(
            self._engines, tasks, self._rng, self._on_useful, send_timeout=timeouts.send
        )
        self.pause_hooks = PauseHooks(
            tasks, runtime.core, self._actors.run, self._reporter, timeouts=timeouts
        )
        self._gates = ReadinessGates(
            tasks,
            runtime.core,
            self._engines,
            runtime.incarnations,
            runtime.post,
            self._pools.weights,
            timeouts=timeouts,
        )
        if self._halted:
            runtime.post(m.Halt())  # asked for while the environment was opened
        tasks.start_soon(self._decide, runtime, name="supervisor")
        await runtime.settled.wait()
        self.settled.set()
        await outlast(runtime.over, self.halt)
        if runtime.ended is None and self.error is None and not self._halted:
            # A defect: each cancellation that nothing requested is to stay with the code that raised it.
            self.error = SupervisorGaveUpError("", "its tasks were cancelled, although nothing requested it")

    async def _decide(self, runtime: Runtime) -> None:
        try:
            await runtime.run()
        except Exception as error:
            log.exception("supervisor.failed")
            self.error = error

    async def _listen(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        await signals.listen(self._received, task_status=task_status)

    def _received(self, number: int) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._signalled_at = number, now
            log.warning("signal", number=number, then="ending the tree; a second signal ends it immediately")
            self.dismissed.set()
            self.halt()
        elif now - self._signalled_at < self.timeouts.runtime.same_signal:
            log.info("signal", number=number, then="nothing: it repeats the first one")
        else:
            log.warning("signal", number=number, then="ending everything immediately")
            self.kill()

    async def _close(self) -> None:
        """Close what was opened, one after the other, each within its timeout; Ray last."""
        steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        if self._pools is not None:
            steps.append(("pools", self._pools.close))
        if self._engines is not None and self._actors is not None:
            steps += [("engines", self._engines.close), ("actors", self._actors.close)]
        for name, close in [*steps, ("environment", self._environment.close)]:
            try:
                with anyio.fail_after(self.timeouts.runtime.close):
                    await close()
            except Exception:  # one step that fails must not keep the next from running
                log.exception("close.failed", what=name)

    # --- reports of the backends --------------------------------------------------------------------

    def items(self, child: str, incarnation: int, items: Sequence[HostItem]) -> None:
        """Pass the items of an engine to its pool; note that a server has done useful work."""
        for item in items:
            if isinstance(item, Worked):
                self._on_useful(child, item.incarnation)
        self.pools.items(child, incarnation, items)

    def items_missing(self, child: str, incarnation: int, reason: str) -> None:
        """Have the pool send again what may have been lost."""
        self.pools.items_missing(child, incarnation, reason)

    def phase(self, child: str, phase: Phase) -> None:
        """Report the progress of a start."""
        self._reporter.progressed(child, phase)

    def condition(self, child: str, incarnation: int, event: str, causes: tuple[Cause, ...] = ()) -> None:
        """Pass a change of a child's condition to the core."""
        why = None
        if causes:
            why = Fault(
                child=child, incarnation=incarnation, at=time.monotonic(), source="host",
                fault_class=FaultClass.TRANSIENT, causes=causes, phase="serving",
            )  # fmt: skip
        self.runtime.post(m.Reported(child, incarnation, event, why))

    def suspected(self, child: str, incarnation: int, source: str, causes: tuple[Cause, ...]) -> None:
        """Report that an actor cannot be reached or does not answer: it gets no new work until it does."""
        node = self.runtime.core.status(child)
        starting = node is not None and node.configuration.leaf == "STARTING"
        fault = Fault(
            child=child, incarnation=incarnation, at=time.monotonic(), source=source,
            fault_class=FaultClass.TRANSIENT, causes=causes, phase="starting" if starting else "serving",
        )  # fmt: skip
        self._reporter.fault(fault)
        self.runtime.post(m.Reported(child, incarnation, "suspect", fault))

    def unhealthy(self, child: str, condition: Condition, *, again: bool) -> None:
        """Pass an engine's report of a fault of its own to the core; a repeated report is the same fault."""
        incarnation, incarnations = condition.incarnation, self.runtime.incarnations
        fault = incarnations.fault(child, incarnation) if again else None
        if fault is None:
            fault = condition.evidence.as_fault(
                child=child,
                incarnation=incarnation,
                at=time.monotonic(),
                fault_class=FaultClass.RECOVERABLE,
            )
            incarnations.note_fault(fault)
        self.runtime.post(m.Reported(child, incarnation, "unhealthy", fault))

    def _on_useful(self, child: str, incarnation: int) -> None:
        self.runtime.post(m.Progressed(child, incarnation))

    # --- effects of the core ------------------------------------------------------------------------

    def observe(self, effect: m.Effect) -> None:
        """Pass an effect to everything that depends on it."""
        self.pools.observe(effect, self.runtime)
        self._gates.observe(effect)
        self.pause_hooks.observe(effect)
        self.actors.observe(effect)

    def request_not_at_fault(self, child: str, incarnation: int) -> bool:
        """Whether a request in quarantine, and not the engine, is to blame for an end."""
        return self.pools.request_not_at_fault(child, incarnation)


def _present(part: T | None) -> T:
    if part is None:
        raise RuntimeError("the session has not come up")
    return part


def reason_of(session: Session) -> BaseException | None:
    """Return what is raised at the end of a session, if anything."""
    ended = session.ended
    reason: BaseException | None = session.error
    if session.signal is not None:
        interrupted = session.signal == signal.SIGINT
        reason = KeyboardInterrupt() if interrupted else SystemExit(128 + session.signal)
    elif reason is None and ended is not None:
        if not ended.started and not session.halted:
            reason = StartFailedError(ended.origin, ended.exit.fault)
        elif ended.gave_up:
            reason = SupervisorGaveUpError(ended.origin, ended.gave_up, ended.exit.fault)
    return reason


def only_follows(error: BaseException) -> bool:
    """Whether an error of the block is one of rayvisor's, and so a consequence of the end of the tree."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_follows(each) for each in error.exceptions)
    return isinstance(error, RayvisorError)
