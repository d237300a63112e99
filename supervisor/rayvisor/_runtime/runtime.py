"""The loop between the core and the world: one queue in, effects out, results back as events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import structlog
from anyio.abc import TaskGroup

from rayvisor import records as r
from rayvisor._core import messages as m
from rayvisor._core.core import Core
from rayvisor._core.exits import SHUTDOWN, Exit, crashed
from rayvisor._runtime.carriers import Carrier, StartIgnored, StartRefused
from rayvisor._runtime.machine import LifecycleMachine
from rayvisor._runtime.mailbox import Mailbox
from rayvisor._runtime.watchers import Watchers
from rayvisor.classify import Ending, classify
from rayvisor.errors import SupervisorStoppedError
from rayvisor.faults import Cause, Fault
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from random import Random

    from rayvisor._runtime.carriers import Backend
    from rayvisor.specs import ChildSpec, Shutdown, SupervisorSpec
    from statecharts import Configuration

__all__ = ["Runtime"]

log = structlog.get_logger("rayvisor.supervisor")

CLEAN_SECONDS = 30.0
"""How long the end of what is left of an incarnation, and its proof, may take."""
STOP_SLACK_SECONDS = 30.0
"""How much longer than its shutdown time a stop may take: for the kill and its proof."""
RELEASE_SECONDS = 30.0


class _Life:
    """The runtime's side of one child: what its lifecycle hooks see, and its newest incarnation."""

    __slots__ = ("backend", "carrier", "carrying", "child", "incarnation", "machine", "served", "state", "up_at")

    def __init__(
        self, child: str, state: Configuration, machine: LifecycleMachine, backend: Backend | None
    ) -> None:
        self.child = child
        self.machine = machine
        self.backend = backend
        self.state = state
        self.incarnation = 0
        self.carrier: Carrier | None = None
        self.carrying: anyio.CancelScope | None = None
        self.served = False
        self.up_at = 0.0

    def __repr__(self) -> str:
        return f"<{self.child}, incarnation {self.incarnation}, {self.state}>"


class Runtime:
    """Runs one tree.

    Parameters
    ----------
    spec
        The root supervisor.
    random
        Where jitter comes from.
    tasks
        Owner of every task the runtime starts.
    backends
        What carries each kind of children.
    watchers
        Who is told what happens.
    call_limit
        How many calls may wait for their answer.
    listener
        Called with each effect after it was carried out: the pools' fronts hang on it.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        random: Random,
        tasks: TaskGroup,
        backends: Mapping[str, Backend],
        *,
        watchers: Watchers,
        call_limit: int,
        listener: Callable[[m.Effect], None],
    ) -> None:
        self.core = Core(spec, random)
        self.watchers = watchers
        self.machines = {name: LifecycleMachine(CHARTS[name]) for name in ("actor", "engine")}
        self.running = False
        self.ended: m.TreeEnded | None = None
        self.settled = anyio.Event()
        """Set when the tree is up, or has ended."""
        self.over = anyio.Event()
        """Set when the tree has ended."""
        self._tasks = tasks
        self._backends = backends
        self._mailbox = Mailbox(call_limit)
        self._listener = listener
        self._lives: dict[str, _Life] = {}
        self._timers: dict[int, anyio.CancelScope] = {}
        self._call_ids = count(1)
        self._waiting: dict[int, _Answer] = {}
        self._faults: dict[tuple[str, int], Fault] = {}
        self._hurry = False
        self._stopping: set[_Stop] = set()

    # --- in --------------------------------------------------------------------------------------

    def post(self, event: m.Event) -> None:
        """Feed an event to the core."""
        self._mailbox.post(event)

    async def call(self, verb: m.Verb, target: str, argument: Any = None) -> Any:
        """Ask the core for something, and wait for its answer."""
        if self.over.is_set():
            raise SupervisorStoppedError(target)
        number = next(self._call_ids)
        answer = _Answer()
        self._mailbox.post(m.Call(number, verb, target, argument))
        self._waiting[number] = answer
        try:
            await answer.there.wait()
        finally:
            self._waiting.pop(number, None)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def hurry(self) -> None:
        """End what is being ended at once, without waiting for shutdown times."""
        self._hurry = True
        for stop in self._stopping:
            stop.hurry()

    # --- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide and carry out, until the tree has ended."""
        self.running = True
        self._mailbox.post(m.Boot())
        try:
            while self.ended is None:
                event = await self._mailbox.next()
                for effect in self.core.handle(event, time.monotonic()):
                    _CARRY[type(effect)](self, effect)
                    self._listener(effect)
        finally:
            self._finish()

    def _finish(self) -> None:
        for answer in self._waiting.values():
            answer.give(None, SupervisorStoppedError(""))
        for timer in self._timers.values():
            timer.cancel()
        self.watchers.close()
        self.settled.set()
        self.over.set()

    def _life(self, child: str, first: Configuration | None = None) -> _Life:
        known = self._lives.get(child)
        if known is None:
            # A child may be gone from the core by the time its first effects are carried out.
            node = self.core.children.get(child)
            machine = self.machines["actor" if node is None else node.table.chart.name]
            backend = None if node is None else self._backends.get(getattr(node.spec.start, "kind", ""))
            known = self._lives[child] = _Life(child, first or machine.table.initial, machine, backend)
        return known

    # --- effects ------------------------------------------------------------------------------------

    def _start(self, effect: m.Start) -> None:
        life = self._life(effect.child)
        life.incarnation = effect.incarnation
        backend = self._backends[effect.spec.start.kind]  # type: ignore[union-attr]  # a worker's start has a kind
        life.carrier = backend.carry(effect.child, effect.incarnation, effect.spec, effect.predecessor)
        life.carrying = anyio.CancelScope()
        self._tasks.start_soon(
            self._carry, life, effect, life.carrier, life.carrying, name=f"{effect.child}#{effect.incarnation}"
        )

    async def _carry(self, life: _Life, effect: m.Start, carrier: Carrier, scope: anyio.CancelScope) -> None:
        """Start an incarnation and wait for its end; whatever happens, an event says so."""
        child, incarnation = effect.child, effect.incarnation
        with scope:
            try:
                with anyio.fail_after(effect.spec.start_deadline):
                    await carrier.start()
            except StartIgnored:
                self.post(m.Ignored(child, incarnation))
                return
            except StartRefused as refused:
                self._start_failed(life, effect, refused.ending)
                return
            except TimeoutError:
                late = Cause("StartDeadlineExceeded", f"not up within start_deadline={effect.spec.start_deadline:g} s")
                self._start_failed(life, effect, Ending(causes=(late,), overdue=True, doing="starting"))
                return
            except Exception as error:  # a defect of a backend must not leave the core waiting
                log.exception("start.broke", child=child, incarnation=incarnation)
                self._start_failed(life, effect, Ending(causes=(Cause(type(error).__name__, str(error)),)))
                return
            self.post(m.Started(child, incarnation))
            try:
                ending = await carrier.ended()
            except Exception as error:
                log.exception("watch.broke", child=child, incarnation=incarnation)
                ending = Ending(causes=(Cause(type(error).__name__, str(error)),))
            self.post(m.Exited(child, incarnation, self._exit(life, incarnation, ending, starting=False), gone=False))

    def _start_failed(self, life: _Life, effect: m.Start, ending: Ending) -> None:
        exit_ = self._exit(life, effect.incarnation, ending, starting=True)
        self.post(m.StartFailed(effect.child, effect.incarnation, exit_, gone=False))

    def _exit(self, life: _Life, incarnation: int, ending: Ending, *, starting: bool) -> Exit:
        """Turn what a backend reports into the fault record that everything else works with."""
        fault = Fault(
            child=life.child,
            incarnation=incarnation,
            at=time.monotonic(),
            source=ending.source,
            fault_class=classify(ending, starting=starting, served=life.served),
            causes=ending.causes,
            traceback=ending.traceback,
            exit_code=ending.exit_code,
            signal=ending.signal,
            node=ending.node,
            log_file=ending.log_file,
            doing=ending.doing or ("starting" if starting else "serving"),
        )
        if not ending.intended:
            self._faults[life.child, incarnation] = fault
            self._faults.pop((life.child, incarnation - 2), None)
            self.watchers.tell(r.FaultSeen(at=fault.at, fault=fault))
            log.error(
                "fault",
                root=str(fault.root),
                child=fault.child,
                incarnation=incarnation,
                fault_class=str(fault.fault_class),
                source=fault.source,
                signal=fault.signal,
                exit_code=fault.exit_code,
                doing=fault.doing,
                log_file=fault.log_file,
            )
        return crashed(fault)

    def fault(self, child: str, incarnation: int) -> Fault | None:
        """Why this incarnation ended, if it was a fault."""
        return self._faults.get((child, incarnation))

    def _stop(self, effect: m.Stop) -> None:
        life = self._life(effect.child)
        stop = _Stop(effect.shutdown)
        self._tasks.start_soon(self._end, life, effect, stop, name=f"stop {effect.child}#{effect.incarnation}")

    async def _end(self, life: _Life, effect: m.Stop, stop: _Stop) -> None:
        if life.carrying is not None:
            life.carrying.cancel()
        verified = False
        self._stopping.add(stop)
        try:
            if life.carrier is not None:
                verified = await stop.run(life.carrier, effect.reason, hurry=self._hurry)
        except Exception:
            log.exception("stop.broke", child=effect.child, incarnation=effect.incarnation)
        finally:
            self._stopping.discard(stop)
        if not verified:
            self._unverified(effect.child, effect.incarnation, "stop")
        self.post(m.Exited(effect.child, effect.incarnation, SHUTDOWN, gone=True))

    def _clean(self, effect: m.Clean) -> None:
        life = self._life(effect.child)
        self._tasks.start_soon(self._prove, life, effect, name=f"clean {effect.child}#{effect.incarnation}")

    async def _prove(self, life: _Life, effect: m.Clean) -> None:
        verified = False
        try:
            with anyio.move_on_after(CLEAN_SECONDS):
                verified = life.carrier is None or await life.carrier.clean()
        except Exception:
            log.exception("clean.broke", child=effect.child, incarnation=effect.incarnation)
        if not verified:
            self._unverified(effect.child, effect.incarnation, "clean")
        self.post(m.Gone(effect.child, effect.incarnation, verified))

    def _unverified(self, child: str, incarnation: int, what: str) -> None:
        log.warning("gone.unverified", child=child, incarnation=incarnation, during=what)
        self.watchers.tell(r.GoneUnverified(at=time.monotonic(), child=child, incarnation=incarnation, why=what))

    def _kill(self, effect: m.Kill) -> None:
        life = self._lives.get(effect.child)
        log.warning("start.late", child=effect.child, incarnation=effect.incarnation)
        if life is not None and life.incarnation == effect.incarnation and life.carrier is not None:
            self._tasks.start_soon(self._put_down, life.carrier, effect, name=f"kill {effect.child}")

    async def _put_down(self, carrier: Carrier, effect: m.Kill) -> None:
        verified = False
        try:
            with anyio.move_on_after(CLEAN_SECONDS):
                verified = await carrier.clean()
        except Exception:
            log.exception("kill.broke", child=effect.child, incarnation=effect.incarnation)
        if not verified:
            self._unverified(effect.child, effect.incarnation, "kill")

    def _set_timer(self, effect: m.SetTimer) -> None:
        if effect.delay <= 0:
            self.post(m.TimerFired(effect.timer))
            return
        scope = self._timers[effect.timer] = anyio.CancelScope()
        self._tasks.start_soon(self._wait, effect, scope, name=f"timer of {effect.child}")

    async def _wait(self, effect: m.SetTimer, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(effect.delay)
            self.post(m.TimerFired(effect.timer))
        self._timers.pop(effect.timer, None)

    def _cancel_timer(self, effect: m.CancelTimer) -> None:
        scope = self._timers.pop(effect.timer, None)
        if scope is not None:
            scope.cancel()

    def _reply(self, effect: m.Reply) -> None:
        self._mailbox.answered()
        answer = self._waiting.get(effect.call)
        if answer is not None:
            answer.give(effect.value, effect.error)

    def _changed(self, effect: m.Changed) -> None:
        life = self._life(effect.child, effect.before)
        now = time.monotonic()
        if effect.event == "started":
            life.served = True
            life.up_at = now
        if effect.before is not effect.after:
            reached = life.machine.fire(life, effect.event)
            if reached is not effect.after:
                log.error("machine.disagrees", child=effect.child, trigger=effect.event, core=str(effect.after))
                life.state = effect.after
        self.watchers.tell(
            r.StateChanged(
                at=now,
                child=effect.child,
                incarnation=effect.incarnation,
                event=effect.event,
                before=effect.before.path,
                after=effect.after.path,
                why=effect.why,
            )
        )
        log.info(
            "child.changed",
            child=effect.child,
            incarnation=effect.incarnation,
            trigger=effect.event,
            before=effect.before.path,
            after=effect.after.path,
        )
        if effect.after.state == "DEAD" and life.backend is not None:
            self._tasks.start_soon(self._release, life.backend, effect.child, name=f"release {effect.child}")

    async def _release(self, backend: Backend, child: str) -> None:
        try:
            with anyio.move_on_after(RELEASE_SECONDS):
                await backend.release(child)
        except Exception:
            log.exception("release.broke", child=child)

    def _decided(self, effect: m.Decided) -> None:
        self.watchers.tell(
            r.DecisionMade(
                at=time.monotonic(),
                child=effect.child,
                incarnation=effect.incarnation,
                decision=effect.decision,
                why=effect.detail,
                restarts=effect.restarts,
                intensity=effect.intensity,
                delay=effect.delay,
            )
        )
        log.warning(
            "decided",
            child=effect.child,
            incarnation=effect.incarnation,
            decision=effect.decision,
            why=effect.detail,
            restarts=effect.restarts,
            intensity=effect.intensity,
            delay=round(effect.delay, 3),
        )

    def _forgotten(self, effect: m.Forgotten) -> None:
        self._lives.pop(effect.child, None)

    def _supervisor_changed(self, effect: m.SupervisorChanged) -> None:
        why = "" if effect.exit is None else str(effect.exit)
        self.watchers.tell(r.SupervisorMoved(at=time.monotonic(), path=effect.path, state=effect.state, why=why))
        log.info("supervisor.changed", supervisor=effect.path or "root", state=effect.state)

    def _tree_up(self, _: m.TreeUp) -> None:
        self.settled.set()

    def _tree_ended(self, effect: m.TreeEnded) -> None:
        self.ended = effect


class _Answer:
    """Where a caller waits."""

    __slots__ = ("error", "there", "value")

    def __init__(self) -> None:
        self.there = anyio.Event()
        self.value: Any = None
        self.error: Exception | None = None

    def give(self, value: Any, error: Exception | None) -> None:
        self.value, self.error = value, error
        self.there.set()


class _Stop:
    """One stop under way, which a hurry cuts short."""

    def __init__(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self._patience = anyio.CancelScope()

    def hurry(self) -> None:
        self._patience.cancel()

    async def run(self, carrier: Carrier, reason: str, *, hurry: bool) -> bool:
        """Stop by the child's shutdown; then, or in a hurry, what is left is ended the hard way."""
        seconds = self._shutdown.seconds
        if not hurry:
            with self._patience:
                with anyio.move_on_after(
                    None if seconds is not None and math.isinf(seconds) else (seconds or 0.0) + STOP_SLACK_SECONDS
                ):
                    return await carrier.stop(self._shutdown, reason)
        with anyio.move_on_after(CLEAN_SECONDS):
            return await carrier.clean()
        return False


_CARRY: dict[type, Callable[[Runtime, Any], None]] = {
    m.Start: Runtime._start,
    m.Stop: Runtime._stop,
    m.Clean: Runtime._clean,
    m.Kill: Runtime._kill,
    m.SetTimer: Runtime._set_timer,
    m.CancelTimer: Runtime._cancel_timer,
    m.Reply: Runtime._reply,
    m.Changed: Runtime._changed,
    m.Decided: Runtime._decided,
    m.Forgotten: Runtime._forgotten,
    m.SupervisorChanged: Runtime._supervisor_changed,
    m.TreeUp: Runtime._tree_up,
    m.TreeEnded: Runtime._tree_ended,
}
