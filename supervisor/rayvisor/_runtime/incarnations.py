"""Starting, watching and ending incarnations.

Each effect of the core's is an owned task with a deadline, and whatever becomes of it, an event says so.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.children.protocol import Carrier, RecoveryFailed, StartIgnored, StartRefused
from rayvisor._runtime.deadlines import bounded
from rayvisor._runtime.incarnation import Life, Run
from rayvisor.faults import KILLED, SHUTDOWN, Cause, Ending, Fault, classify, crashed
from rayvisor.specs import Shutdown

if TYPE_CHECKING:
    from rayvisor._runtime.children.protocol import Backend
    from rayvisor._runtime.lifecycle import LifecycleMachine
    from rayvisor._runtime.reporting import Teller
    from rayvisor.faults import Exit
    from statecharts import Configuration

__all__ = ["Lives"]

log = get_logger("rayvisor.supervisor")

START_SLACK_SECONDS = 10.0
"""How much longer than its deadline a start is waited for: its carrier keeps the deadline, if it can."""
STOP_SLACK_SECONDS = 30.0
"""How much longer than its shutdown time a stop may take: for the kill and its proof."""
CLEAN_SECONDS = 30.0
"""How long the end of what is left of an incarnation, and its proof, may take."""
RELEASE_SECONDS = 30.0
"""How long giving back what a child held may take."""


class Lives:
    """The children's lives, carried out.

    Parameters
    ----------
    tasks
        Owner of every task started here.
    backends
        What carries each kind of children.
    machines
        The lifecycle machines, by chart.
    post
        Feeds an event to the core.
    teller
        Who tells of it.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        backends: Mapping[str, Backend],
        machines: Mapping[str, LifecycleMachine],
        post: Callable[[m.Event], None],
        teller: Teller,
    ) -> None:
        self._tasks = tasks
        self._backends = backends
        self._machines = machines
        self._post = post
        self._teller = teller
        self._lives: dict[str, Life] = {}
        self._hurry = False
        self._patience: set[anyio.CancelScope] = set()

    def fault(self, child: str, incarnation: int) -> Fault | None:
        """Why this incarnation ended, if it was a fault."""
        life = self._lives.get(child)
        return None if life is None else life.faults.get(incarnation)

    def hurry(self) -> None:
        """From now on nothing is waited for: what is being ended is killed at once."""
        self._hurry = True
        for scope in self._patience:
            scope.cancel()

    # --- charts ---------------------------------------------------------------------------------

    def changed(self, effect: m.Changed) -> None:
        """Take a child along its chart, with its hooks."""
        life = self._life(effect.child, effect.before, effect.chart)
        if effect.event == "start" and life.state is not effect.before:
            life.state = effect.before  # its supervisor is a new one, and so is its place in the chart
        life.incarnation = effect.incarnation
        if effect.event == "started":
            life.served = True
        elif effect.event == "recovered":
            life.faults.pop(effect.incarnation, None)  # what ends it later is something else
        if effect.before is not effect.after:
            reached = life.machine.fire(life, effect.event)
            if reached is not effect.after:
                log.error(
                    "machine.disagrees",
                    child=effect.child,
                    trigger=effect.event,
                    machine=str(reached),
                    core=str(effect.after),
                )
                life.state = effect.after
        if effect.after.state == "DEAD" and life.backend is not None and life.released is None:
            life.released = anyio.Event()
            self._tasks.start_soon(self._release, life, life.backend, name=f"release {effect.child}")

    def forgotten(self, effect: m.Forgotten) -> None:
        """Drop a child whose spec is gone, and all below it."""
        below = f"{effect.child}/"
        for path in [path for path in self._lives if path == effect.child or path.startswith(below)]:
            life = self._lives[path]
            life.forgotten = True
            self._drop(life)

    def _drop(self, life: Life) -> None:
        """Let go of a forgotten child, but not before a late start of it can no longer come."""
        if life.forgotten and life.idle and self._lives.get(life.child) is life:
            del self._lives[life.child]

    def _life(self, child: str, state: Configuration | None = None, chart: str = "actor") -> Life:
        life = self._lives.get(child)
        if life is None:
            machine = self._machines[chart]
            life = self._lives[child] = Life(child, state or machine.table.initial, machine)
        return life

    # --- starts ---------------------------------------------------------------------------------

    def start(self, effect: m.Start) -> None:
        """Start an incarnation and wait for its end."""
        kind = getattr(effect.spec.start, "kind", "")
        life = self._life(effect.child)  # known: its chart's step came first
        life.start = effect.spec.start
        life.backend = self._backends.get(kind)
        run = life.begin(effect.incarnation)
        name = f"{effect.child}#{effect.incarnation}"
        self._tasks.start_soon(self._live, life, run, effect, name=name)
        self._tasks.start_soon(self._keep_deadline, life, run, effect, name=f"deadline of {name}")

    async def _live(self, life: Life, run: Run, effect: m.Start) -> None:
        """Bring an incarnation up and wait until it has ended by itself."""
        child, incarnation = effect.child, effect.incarnation
        try:
            with run.scope:
                up = await self._come_up(life, run, effect)
                if up is None:
                    return
                # Sent also when it is late, and nobody waits for it any more: the core has it ended.
                self._post(up)
                run.settled.set()
                if isinstance(up, m.Prepared):
                    return  # it has ended when its children have
                ending = await self._await_end(run)
                exit_ = self._exit(life, incarnation, ending, starting=False)
                self._post(m.Exited(child, incarnation, exit_, gone=False))
        finally:
            run.settled.set()
            run.over.set()
            self._drop(life)

    async def _come_up(self, life: Life, run: Run, effect: m.Start) -> m.Started | m.Prepared | None:
        try:
            if life.released is not None:
                await life.released.wait()
                life.released = None
            await anyio.lowlevel.checkpoint()  # a start that was called off makes nothing
            run.carrier = _carry(life.backend, effect)
            spec = await run.carrier.start()
        except StartIgnored:
            self._post(m.Ignored(effect.child, effect.incarnation))
        except StartRefused as refused:
            self._failed(life, run, effect, refused.ending)
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, the core is told
            self._failed(life, run, effect, _broke(error, overdue=isinstance(error, TimeoutError)))
        else:
            if spec is not None:
                return m.Prepared(effect.child, effect.incarnation, spec)
            return m.Started(effect.child, effect.incarnation)
        return None

    @staticmethod
    async def _await_end(run: Run) -> Ending:
        try:
            return await run.carrier.ended() if run.carrier is not None else Ending(causes=())
        except Exception as error:  # noqa: BLE001 - as above
            return _broke(error)

    async def _keep_deadline(self, life: Life, run: Run, effect: m.Start) -> None:
        """Give up a start whose carrier does not keep its deadline."""
        deadline = effect.spec.start_deadline
        limits = getattr(effect.spec.start, "limits", None)  # an engine's start that gets on is given more
        longest = deadline if limits is None else limits.longest(deadline)
        with anyio.move_on_after(longest + START_SLACK_SECONDS):
            await run.settled.wait()
            return
        run.scope.cancel()
        why = f"not up within start_deadline={deadline:g} s, nor did it give up by itself"
        self._failed(life, run, effect, Ending(causes=(Cause("StartDeadlineExceeded", why),), overdue=True))

    def _failed(self, life: Life, run: Run, effect: m.Start, ending: Ending) -> None:
        if run.settled.is_set():
            return  # it was given up before
        run.settled.set()
        exit_ = self._exit(life, effect.incarnation, ending, starting=True)
        self._post(m.StartFailed(effect.child, effect.incarnation, exit_, gone=False))

    # --- faults ---------------------------------------------------------------------------------

    def _exit(self, life: Life, incarnation: int, ending: Ending, *, starting: bool) -> Exit:
        """Turn what a backend reports into the fault record that everything else works with."""
        fault = Fault(
            child=life.child,
            incarnation=incarnation,
            at=time.monotonic(),
            source=ending.source,
            fault_class=classify(ending, starting=starting, served=starting and self._has_served(life)),
            causes=ending.causes,
            traceback=ending.traceback,
            exit_code=ending.exit_code,
            signal=ending.signal,
            node=ending.node,
            log_file=ending.log_file,
            doing=ending.doing or ("starting" if starting else "serving"),
        )
        if not ending.intended:
            life.faults[incarnation] = fault
            self._teller.fault(fault)
        return crashed(fault)._replace(renewed=ending.renewed)

    def noticed(self, fault: Fault) -> None:
        """Take note of a fault that a live incarnation has told of itself."""
        life = self._lives.get(fault.child)
        if life is not None and fault.incarnation in life.runs:
            life.faults[fault.incarnation] = fault
            self._teller.fault(fault)

    def _has_served(self, life: Life) -> bool:
        """Whether this very configuration has come up before, here or as a sibling of a pool."""
        if life.served:
            return True
        group, _, _ = life.child.rpartition("/")
        return any(
            other.served and other.start == life.start
            for other in self._lives.values()
            if other.child.rpartition("/")[0] == group
        )

    # --- ends -----------------------------------------------------------------------------------

    def condemn(self, child: str, incarnation: int, ending: Ending) -> None:
        """End an incarnation that runs, but is of no use."""
        life = self._lives.get(child)
        if life is not None and incarnation in life.runs:
            exit_ = self._exit(life, incarnation, ending, starting=False)
            self._post(m.Exited(child, incarnation, exit_, gone=False))

    def stop(self, effect: m.Stop) -> None:
        """End an incarnation by its shutdown."""
        run = self._run(effect)
        self._tasks.start_soon(self._stop, run, effect, name=f"stop {effect.child}#{effect.incarnation}")

    async def _stop(self, run: Run | None, effect: m.Stop) -> None:
        await self._unwind(run)
        exit_, verified = KILLED, False
        if run is None or run.carrier is None:
            verified = True
        else:
            seconds = effect.shutdown.seconds
            if seconds is not None and not self._hurry:
                patience = anyio.CancelScope()
                self._patience.add(patience)
                with patience:
                    verified = await self._try(
                        effect,
                        "stop",
                        lambda carrier: carrier.stop(effect.shutdown, effect.reason),
                        run.carrier,
                        math.inf if effect.shutdown.endless else seconds + STOP_SLACK_SECONDS,
                    )
                    exit_ = SHUTDOWN
                self._patience.discard(patience)
            if not verified:
                exit_ = KILLED
                verified = await self._try(effect, "stop", _brutally, run.carrier, CLEAN_SECONDS)
        self._note(effect, "stop", verified=verified)
        self._post(m.Exited(effect.child, effect.incarnation, exit_, gone=True))

    def clean(self, effect: m.Clean) -> None:
        """End what an incarnation left behind."""
        run = self._run(effect)
        self._tasks.start_soon(self._clean, run, effect, name=f"clean {effect.child}#{effect.incarnation}")

    async def _clean(self, run: Run | None, effect: m.Clean) -> None:
        await self._unwind(run)
        verified = True
        if run is not None and run.carrier is not None:
            verified = await self._try(
                effect, "clean", lambda carrier: carrier.clean(), run.carrier, CLEAN_SECONDS
            )
        self._note(effect, "clean", verified=verified)
        self._post(m.Gone(effect.child, effect.incarnation, verified))

    def kill(self, effect: m.Kill) -> None:
        """End an incarnation that came up too late."""
        self._teller.late(effect.child, effect.incarnation)
        run = self._run(effect)
        if run is not None and run.carrier is not None:
            name = f"kill {effect.child}#{effect.incarnation}"
            self._tasks.start_soon(self._kill, run, run.carrier, effect, name=name)

    async def _kill(self, run: Run, carrier: Carrier, effect: m.Kill) -> None:
        run.scope.cancel()
        verified = await self._try(effect, "kill", _brutally, carrier, CLEAN_SECONDS)
        self._note(effect, "kill", verified=verified)

    # --- in place -------------------------------------------------------------------------------

    def act(self, effect: m.Act) -> None:
        """Have a live incarnation recover by its own means."""
        self._tasks.start_soon(
            self._act, effect, name=f"{effect.action} of {effect.child}#{effect.incarnation}"
        )

    async def _act(self, effect: m.Act) -> None:
        run = self._run(effect)
        carrier: object = None if run is None else run.carrier
        fault: Fault | None = None
        try:
            act = getattr(carrier, "act", None)
            if act is None:
                raise TypeError(f"a child of this kind cannot do {effect.action!r} in place")  # noqa: TRY301
            name = f"{effect.action} of {effect.child}"
            await bounded(self._tasks, lambda: act(effect.action), effect.within, name)
            ok = True
        except Exception as error:  # noqa: BLE001 - whatever a user's method raises, the core is told
            if run is not None and (run.scope.cancel_called or run.over.is_set()):
                return  # it has ended, or is being ended, and that is told by itself
            ok = False
            if isinstance(error, RecoveryFailed):
                self._teller.not_recovered(effect, str(error))
                fault = self.fault(effect.child, effect.incarnation)
            else:
                ending = _broke(error, overdue=isinstance(error, TimeoutError))
                fault = self._exit(self._life(effect.child), effect.incarnation, ending, starting=False).fault
        self._post(m.Acted(effect.child, effect.incarnation, ok, fault))

    def _run(self, effect: m.Stop | m.Clean | m.Kill | m.Act) -> Run | None:
        life = self._lives.get(effect.child)
        return None if life is None else life.runs.get(effect.incarnation)

    async def _unwind(self, run: Run | None) -> None:
        """Call off what an incarnation's own task still does, and wait until it has let go."""
        if run is not None:
            run.scope.cancel()
            with anyio.move_on_after(1.0):
                await run.over.wait()

    async def _try(
        self,
        effect: m.Stop | m.Clean | m.Kill,
        what: str,
        call: Callable[[Carrier], Awaitable[bool]],
        carrier: Carrier,
        seconds: float,
    ) -> bool:
        """Have a carrier end something; False when it could not, or not in time."""
        name = f"{what} of {effect.child}#{effect.incarnation}"
        try:
            return await bounded(self._tasks, lambda: call(carrier), seconds, name)
        except TimeoutError as error:
            log.warning("end.overdue", child=effect.child, incarnation=effect.incarnation, why=str(error))
        except Exception:
            log.exception("end.broke", child=effect.child, incarnation=effect.incarnation, during=what)
        return False

    def _note(self, effect: m.Stop | m.Clean | m.Kill, what: str, *, verified: bool) -> None:
        if not verified:
            self._teller.unverified(effect.child, effect.incarnation, what)

    async def _release(self, life: Life, backend: Backend) -> None:
        released = life.released
        try:
            await bounded(
                self._tasks, lambda: backend.release(life.child), RELEASE_SECONDS, f"release of {life.child}"
            )
        except Exception:
            log.exception("release.broke", child=life.child)
        finally:
            if released is not None:
                released.set()
            self._drop(life)


def _brutally(carrier: Carrier) -> Awaitable[bool]:
    return carrier.stop(Shutdown.BRUTAL_KILL, "killed")


def _broke(error: Exception, *, overdue: bool = False) -> Ending:
    return Ending(
        causes=tuple(Cause(*cause) for cause in plain_causes(error)),
        traceback="".join(traceback.format_exception(error)),
        overdue=overdue,
    )


def _carry(backend: Backend | None, effect: m.Start) -> Carrier:
    if backend is None:
        kind = getattr(effect.spec.start, "kind", "")
        raise StartRefused(
            Ending(causes=(Cause("UnknownKind", f"nothing here carries children of kind={kind!r}"),))
        )
    return backend.carry(effect.child, effect.incarnation, effect.spec, effect.predecessor)
