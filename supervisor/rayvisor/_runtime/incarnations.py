"""Starts, watches and ends incarnations.

Each effect of the core runs as an owned task with a timeout; whatever its outcome, an event reports it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from rayvisor._core.paths import split
from rayvisor._core.protocol.causes import plain_causes, shortened, traceback_text
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.children.protocol import (
    Incarnation,
    RecoveryFailedError,
    StartIgnored,
    StartRefusedError,
)
from rayvisor._runtime.deadlines import bounded, must_pass
from rayvisor._runtime.incarnation import ChildRecord, Run
from rayvisor._runtime.path_map import PathMap
from rayvisor._runtime.served_starts import ServedStarts
from rayvisor.faults import KILLED, SHUTDOWN, Cause, Fault, Termination, classify, crashed
from rayvisor.specs import Shutdown
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._runtime.children.protocol import ChildBackend
    from rayvisor._runtime.lifecycle import LifecycleMachine
    from rayvisor._runtime.reporting import EventReporter
    from rayvisor.faults import Exit
    from statecharts import Configuration

__all__ = ["IncarnationManager"]

log = get_logger("rayvisor.supervisor")


class IncarnationManager:
    """Starts, watches and ends the incarnations of all children.

    Parameters
    ----------
    tasks
        Owner of every task started here.
    backends
        The backends, by kind of child.
    machines
        The lifecycle machines, by chart.
    post
        Sends an event to the core.
    reporter
        Reports faults and what could not be ended.
    timeouts
        Timeouts of the effects that it carries out.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        backends: Mapping[str, ChildBackend],
        machines: Mapping[str, LifecycleMachine],
        post: Callable[[m.Event], None],
        reporter: EventReporter,
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self._timeouts = timeouts
        self._tasks = tasks
        self._backends = backends
        self._machines = machines
        self._post = post
        self._reporter = reporter
        self._records: PathMap[ChildRecord] = PathMap()
        self._served_starts = ServedStarts()
        self._killing = False
        self._grace_scopes: set[anyio.CancelScope] = set()

    def fault(self, child: str, incarnation: int) -> Fault | None:
        """Return the fault that ended this incarnation; None if there was none."""
        record = self._records.get(child)
        return None if record is None else record.faults.get(incarnation)

    def kill_all(self) -> None:
        """Kill what is being ended, and from now on everything that is to be ended."""
        self._killing = True
        for scope in self._grace_scopes:
            scope.cancel()

    # --- charts ---------------------------------------------------------------------------------

    def changed(self, effect: m.Changed) -> None:
        """Carry out a transition of a child, with its lifecycle hooks."""
        record = self._record(effect.child, effect.before, effect.chart)
        if effect.event == "start" and record.state is not effect.before:
            record.state = effect.before  # its supervisor is a new one, and its chart begins anew
        record.incarnation = effect.incarnation
        if effect.event == "started":
            self._note_served(record)
        elif effect.event == "recovered":
            record.faults.pop(effect.incarnation, None)  # what ends it later is another fault
        if effect.before is not effect.after:
            reached = record.machine.fire(record, effect.event)
            if reached is not effect.after:
                log.error(
                    "machine.disagrees",
                    child=effect.child,
                    trigger=effect.event,
                    machine=str(reached),
                    core=str(effect.after),
                )
                record.state = effect.after
        if effect.after.state == "DEAD" and record.backend is not None and record.released is None:
            record.released = anyio.Event()
            self._tasks.start_soon(self._release, record, record.backend, name=f"release {effect.child}")

    def removed(self, effect: m.Removed) -> None:
        """Drop a child whose spec is gone, and all below it."""
        for path in list(self._records.below(effect.child)):
            record = self._records[path]
            record.removed = True
            self._drop(record)

    def _drop(self, record: ChildRecord) -> None:
        """Delete the record of a removed child once none of its starts can come up late any more."""
        if record.removed and record.idle and self._records.get(record.child) is record:
            del self._records[record.child]
            if record.served is not None:
                self._served_starts.discard(record.served)

    def _record(self, child: str, state: Configuration | None = None, chart: str = "actor") -> ChildRecord:
        record = self._records.get(child)
        if record is None:
            machine = self._machines[chart]
            record = self._records[child] = ChildRecord(child, state or machine.table.initial, machine)
        return record

    # --- starts ---------------------------------------------------------------------------------

    def start(self, effect: m.Start) -> None:
        """Start an incarnation and wait for its end."""
        kind = getattr(effect.spec.start, "kind", "")
        record = self._record(effect.child)  # known: its chart's step came first
        record.start = effect.spec.start
        record.backend = self._backends.get(kind)
        run = record.begin(effect.incarnation)
        name = f"{effect.child}#{effect.incarnation}"
        self._tasks.start_soon(self._live, record, run, effect, name=name)
        limit = f"start timeout of {name}"
        self._tasks.start_soon(self._enforce_start_timeout, record, run, effect, name=limit)

    async def _live(self, record: ChildRecord, run: Run, effect: m.Start) -> None:
        """Bring an incarnation up and wait until it has ended by itself."""
        child, incarnation = effect.child, effect.incarnation
        try:
            with run.scope:
                up = await self._come_up(record, run, effect)
                if up is None:
                    return
                # Posted also when it is late: the core then has it ended.
                self._post(up)
                run.settled.set()
                if isinstance(up, m.Prepared):
                    return  # a supervisor ends with its children; the core decides that
                termination = await self._await_end(run)
                exit_ = self._exit(record, incarnation, termination, starting=False)
                self._post(m.Exited(child, incarnation, exit_, gone=False))
        except anyio.get_cancelled_exc_class() as error:
            if must_pass(error):
                raise
            # Raised by user code while this scope was cancelled: whatever cancelled it reports the end.
        finally:
            run.settled.set()
            run.over.set()
            self._drop(record)

    async def _come_up(self, record: ChildRecord, run: Run, effect: m.Start) -> m.Started | m.Prepared | None:
        try:
            if record.released is not None:
                await record.released.wait()
                record.released = None
            await anyio.lowlevel.checkpoint()  # a start that was cancelled creates nothing
            run.incarnation = _create_incarnation(record.backend, effect)
            spec = await run.incarnation.start()
        except StartIgnored:
            self._post(m.Ignored(effect.child, effect.incarnation))
        except StartRefusedError as refused:
            self._failed(record, run, effect, refused.termination)
        except BaseException as error:
            if must_pass(error):
                raise
            self._failed(record, run, effect, _termination_of(error, overdue=isinstance(error, TimeoutError)))
        else:
            if spec is not None:
                return m.Prepared(effect.child, effect.incarnation, spec)
            return m.Started(effect.child, effect.incarnation)
        return None

    @staticmethod
    async def _await_end(run: Run) -> Termination:
        try:
            return await run.incarnation.ended() if run.incarnation is not None else Termination(causes=())
        except BaseException as error:
            if must_pass(error):
                raise
            return _termination_of(error)

    async def _enforce_start_timeout(self, record: ChildRecord, run: Run, effect: m.Start) -> None:
        """Give up a start whose incarnation does not enforce its timeout."""
        timeout = effect.spec.start_timeout
        limits = getattr(effect.spec.start, "limits", None)  # an engine's start that makes progress gets more
        longest = timeout if limits is None else limits.longest(timeout)
        with anyio.move_on_after(longest + self._timeouts.start_slack):
            await run.settled.wait()
            return
        run.scope.cancel()
        why = f"not up within start_timeout={timeout:g} s, and it did not give up by itself"
        self._failed(record, run, effect, Termination(causes=(Cause("StartTimeout", why),), overdue=True))

    def _failed(self, record: ChildRecord, run: Run, effect: m.Start, termination: Termination) -> None:
        if run.settled.is_set():
            return  # it has been given up before
        run.settled.set()
        exit_ = self._exit(record, effect.incarnation, termination, starting=True)
        self._post(m.StartFailed(effect.child, effect.incarnation, exit_, gone=False))

    # --- faults ---------------------------------------------------------------------------------

    def _exit(
        self, record: ChildRecord, incarnation: int, termination: Termination, *, starting: bool
    ) -> Exit:
        """Turn a backend's report of an end into a fault record, and report the fault."""
        fault_class = classify(termination, starting=starting, served=starting and self._has_served(record))
        phase = termination.phase or ("starting" if starting else "serving")
        causes = tuple(Cause(cause.type, shortened(cause.message)) for cause in termination.causes)
        fault = replace(termination, phase=phase, causes=causes).as_fault(
            child=record.child, incarnation=incarnation, at=time.monotonic(), fault_class=fault_class
        )
        if not termination.intended:
            record.faults[incarnation] = fault
            self._reporter.fault(fault)
        return crashed(fault)._replace(restarted_by_ray=termination.restarted_by_ray)

    def note_fault(self, fault: Fault) -> None:
        """Record and report a fault that a live incarnation has reported of itself."""
        record = self._records.get(fault.child)
        if record is not None and fault.incarnation in record.runs:
            record.faults[fault.incarnation] = fault
            self._reporter.fault(fault)

    def _note_served(self, record: ChildRecord) -> None:
        before = record.served
        if before is None or before.start is not record.start:
            record.served = self._served_starts.add(split(record.child)[0], record.start)
            if before is not None:
                self._served_starts.discard(before)

    def _has_served(self, record: ChildRecord) -> bool:
        """Whether this child, or a sibling with the same configuration, has come up before."""
        return record.served is not None or self._served_starts.has(split(record.child)[0], record.start)

    # --- ends -----------------------------------------------------------------------------------

    def condemn(self, child: str, incarnation: int, termination: Termination) -> None:
        """Have an incarnation that runs, but cannot be used, ended as if it had failed."""
        record = self._records.get(child)
        if record is not None and incarnation in record.runs:
            exit_ = self._exit(record, incarnation, termination, starting=False)
            self._post(m.Exited(child, incarnation, exit_, gone=False))

    def stop(self, effect: m.Stop) -> None:
        """End an incarnation in order, within its shutdown time."""
        run = self._run(effect)
        self._tasks.start_soon(self._stop, run, effect, name=f"stop {effect.child}#{effect.incarnation}")

    async def _stop(self, run: Run | None, effect: m.Stop) -> None:
        await self._unwind(run)
        exit_, verified = KILLED, False
        if run is None or run.incarnation is None:
            verified = True
        else:
            seconds = effect.shutdown.seconds
            if seconds is not None and not self._killing:
                grace_scope = anyio.CancelScope()
                self._grace_scopes.add(grace_scope)
                with grace_scope:
                    verified = await self._try(
                        effect,
                        "stop",
                        lambda incarnation: incarnation.stop(effect.shutdown, effect.reason),
                        run.incarnation,
                        math.inf if effect.shutdown.endless else seconds + self._timeouts.stop_slack,
                    )
                    exit_ = SHUTDOWN
                self._grace_scopes.discard(grace_scope)
            if not verified:
                exit_ = KILLED
                verified = await self._try(effect, "stop", _kill, run.incarnation, self._timeouts.clean)
        self._check_verified(effect, "stop", verified=verified)
        self._post(m.Exited(effect.child, effect.incarnation, exit_, gone=True))

    def clean(self, effect: m.Clean) -> None:
        """End what is left of an incarnation that has ended."""
        run = self._run(effect)
        self._tasks.start_soon(self._clean, run, effect, name=f"clean {effect.child}#{effect.incarnation}")

    async def _clean(self, run: Run | None, effect: m.Clean) -> None:
        await self._unwind(run)
        verified = True
        if run is not None and run.incarnation is not None:
            verified = await self._try(
                effect,
                "clean",
                lambda incarnation: incarnation.clean(),
                run.incarnation,
                self._timeouts.clean,
            )
        self._check_verified(effect, "clean", verified=verified)
        self._post(m.Gone(effect.child, effect.incarnation, verified))

    def kill(self, effect: m.Kill) -> None:
        """Kill an incarnation that came up too late."""
        self._reporter.late(effect.child, effect.incarnation)
        run = self._run(effect)
        if run is not None and run.incarnation is not None:
            name = f"kill {effect.child}#{effect.incarnation}"
            self._tasks.start_soon(self._kill, run, run.incarnation, effect, name=name)

    async def _kill(self, run: Run, incarnation: Incarnation, effect: m.Kill) -> None:
        run.scope.cancel()
        verified = await self._try(effect, "kill", _kill, incarnation, self._timeouts.clean)
        self._check_verified(effect, "kill", verified=verified)

    # --- in place -------------------------------------------------------------------------------

    def act(self, effect: m.Act) -> None:
        """Have a live incarnation recover in place."""
        self._tasks.start_soon(
            self._act, effect, name=f"{effect.action} of {effect.child}#{effect.incarnation}"
        )

    async def _act(self, effect: m.Act) -> None:
        run = self._run(effect)
        incarnation: object = None if run is None else run.incarnation
        fault: Fault | None = None
        try:
            act = _recovery_of(incarnation, effect)
            name = f"{effect.action} of {effect.child}"
            await bounded(
                self._tasks,
                lambda: act(effect.action),
                effect.timeout,
                name,
                unwind=self._timeouts.unwind,
            )
            ok = True
        except Exception as error:  # noqa: BLE001 - whatever a user's method raises is reported to the core
            if run is not None and (run.scope.cancel_called or run.over.is_set()):
                return  # it has ended, or is being ended, and that is reported separately
            ok = False
            if isinstance(error, RecoveryFailedError):
                self._reporter.not_recovered(effect, shortened(str(error)))
                fault = self.fault(effect.child, effect.incarnation)
            else:
                termination = _termination_of(error, overdue=isinstance(error, TimeoutError))
                fault = self._exit(
                    self._record(effect.child), effect.incarnation, termination, starting=False
                ).fault
        self._post(m.Acted(effect.child, effect.incarnation, ok, fault))

    def _run(self, effect: m.Stop | m.Clean | m.Kill | m.Act) -> Run | None:
        record = self._records.get(effect.child)
        return None if record is None else record.runs.get(effect.incarnation)

    async def _unwind(self, run: Run | None) -> None:
        """Cancel an incarnation's own task, and wait a moment for its end."""
        if run is not None:
            run.scope.cancel()
            with anyio.move_on_after(self._timeouts.unwind):
                await run.over.wait()

    async def _try(
        self,
        effect: m.Stop | m.Clean | m.Kill,
        what: str,
        call: Callable[[Incarnation], Awaitable[bool]],
        incarnation: Incarnation,
        seconds: float,
    ) -> bool:
        """Call an incarnation's stop or clean; return False if it failed or took too long."""
        name = f"{what} of {effect.child}#{effect.incarnation}"
        try:
            return await bounded(
                self._tasks, lambda: call(incarnation), seconds, name, unwind=self._timeouts.unwind
            )
        except TimeoutError as error:
            log.warning("end.overdue", child=effect.child, incarnation=effect.incarnation, why=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, the end is not verified
            log.error(  # noqa: TRY400 - exc_info would log a message of any length
                "end.failed",
                child=effect.child,
                incarnation=effect.incarnation,
                during=what,
                traceback=traceback_text(error),
            )
        return False

    def _check_verified(self, effect: m.Stop | m.Clean | m.Kill, what: str, *, verified: bool) -> None:
        if not verified:
            self._reporter.unverified(effect.child, effect.incarnation, what)

    async def _release(self, record: ChildRecord, backend: ChildBackend) -> None:
        released = record.released
        try:
            await bounded(
                self._tasks,
                lambda: backend.release(record.child),
                self._timeouts.release,
                f"release of {record.child}",
                unwind=self._timeouts.unwind,
            )
        except Exception as error:  # noqa: BLE001 - as above
            log.error(  # noqa: TRY400 - as in _try
                "release.failed", child=record.child, traceback=traceback_text(error)
            )
        finally:
            if released is not None:
                released.set()
            self._drop(record)


def _recovery_of(incarnation: object, effect: m.Act) -> Callable[[str], Awaitable[None]]:
    act: Callable[[str], Awaitable[None]] | None = getattr(incarnation, "act", None)
    if act is None:
        raise TypeError(f"a child of this kind cannot do {effect.action!r} in place")
    return act


def _kill(incarnation: Incarnation) -> Awaitable[bool]:
    return incarnation.stop(Shutdown.BRUTAL_KILL, "killed")


def _termination_of(error: BaseException, *, overdue: bool = False) -> Termination:
    return Termination(
        causes=plain_causes(error),
        traceback=traceback_text(error),
        overdue=overdue,
    )


def _create_incarnation(backend: ChildBackend | None, effect: m.Start) -> Incarnation:
    if backend is None:
        kind = getattr(effect.spec.start, "kind", "")
        raise StartRefusedError(
            Termination(causes=(Cause("UnknownKind", f"no backend runs children of kind={kind!r}"),))
        )
    return backend.create_incarnation(effect.child, effect.incarnation, effect.spec, effect.predecessor)
