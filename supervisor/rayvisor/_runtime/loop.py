"""The loop around the core: it takes events from one queue, and carries out the effects.

The results come back as events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.core import Core
from rayvisor._runtime.incarnations import IncarnationManager
from rayvisor._runtime.mailbox import Mailbox
from rayvisor._runtime.watchdog import Watchdog
from rayvisor.errors import SupervisorStoppedError
from rayvisor.faults import KILLED
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from random import Random

    from rayvisor._runtime.children.protocol import ChildBackend
    from rayvisor._runtime.lifecycle import LifecycleMachine
    from rayvisor._runtime.reporting import EventReporter
    from rayvisor.specs import SupervisorSpec

__all__ = ["EffectObserver", "Runtime"]


class _Answer:
    """The answer to one call, which its caller waits for."""

    __slots__ = ("error", "given", "value")

    def __init__(self) -> None:
        self.given = anyio.Event()
        self.value: Any = None
        self.error: Exception | None = None

    def give(self, value: Any, error: Exception | None) -> None:
        self.value, self.error = value, error
        self.given.set()


class EffectObserver(Protocol):
    """Receives every effect of the core."""

    def observe(self, effect: m.Effect) -> None:
        """Process an effect, after it was carried out and before the next one is."""

    def request_not_at_fault(self, child: str, incarnation: int) -> bool:
        """Whether a request that runs alone on this incarnation is to blame if the incarnation ends now.

        Such an end does not count as an unproductive restart.
        """
        ...


class Runtime:
    """Runs one tree.

    Parameters
    ----------
    spec
        The root supervisor.
    random
        Source of jitter.
    tasks
        Owner of every task that the runtime starts.
    backends
        The backends, by kind of child.
    machines
        The lifecycle machines, by chart.
    reporter
        Reports what happens.
    call_limit
        How many calls may wait for their answer.
    observer
        Receives every effect.
    timeouts
        Timeouts of the effects, and of the watchdog.
    """

    def __init__(  # noqa: PLR0913 - keywords, each of its own meaning
        self,
        spec: SupervisorSpec,
        random: Random,
        tasks: TaskGroup,
        backends: Mapping[str, ChildBackend],
        *,
        machines: Mapping[str, LifecycleMachine],
        reporter: EventReporter,
        call_limit: int,
        observer: EffectObserver | None = None,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self.core = Core(spec, random)
        self.incarnations = IncarnationManager(
            tasks, backends, machines, self.post, reporter, timeouts=timeouts
        )
        self.ended: m.TreeEnded | None = None
        self.settled = anyio.Event()
        """Set when the tree is up, or has ended."""
        self.over = anyio.Event()
        """Set when the tree has ended."""
        self.watchdog = Watchdog(lambda: self.core.asking, reporter.loop_blocked, timeouts=timeouts)
        self._tasks = tasks
        self._reporter = reporter
        self._mailbox = Mailbox(call_limit)
        self._observer = observer
        self._timers: dict[int, anyio.CancelScope] = {}
        self._call_ids = count(1)
        self._waiting: dict[int, _Answer] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Start: self.incarnations.start,
            m.Stop: self.incarnations.stop,
            m.Clean: self.incarnations.clean,
            m.Act: self.incarnations.act,
            m.Kill: self.incarnations.kill,
            m.SetTimer: self._set_timer,
            m.CancelTimer: self._cancel_timer,
            m.Reply: self._reply,
            m.Changed: self._changed,
            m.Decided: reporter.decided,
            m.StrategyFailed: reporter.strategy_failed,
            m.Removed: self.incarnations.removed,
            m.SupervisorChanged: reporter.supervisor_changed,
            m.TreeUp: self._tree_up,
            m.TreeEnded: self._tree_ended,
        }

    # --- in --------------------------------------------------------------------------------------

    def post(self, event: m.Event) -> None:
        """Send an event to the core."""
        if (
            isinstance(event, m.Exited)
            and self._observer is not None
            and self._observer.request_not_at_fault(event.child, event.incarnation)
        ):
            self._mailbox.post(m.Progressed(event.child, event.incarnation))
        self._mailbox.post(event)

    async def call(self, verb: m.Verb, target: str, argument: Any = None) -> Any:
        """Call a verb of the core, and wait for its answer.

        Raises
        ------
        SupervisorStoppedError
            The tree has ended, perhaps while the call waited.
        SupervisorBusyError
            Too many calls are waiting already.
        """
        if self.over.is_set():
            raise SupervisorStoppedError(target)
        number = next(self._call_ids)
        answer = _Answer()
        self._mailbox.post(m.Call(number, verb, target, argument))
        self._waiting[number] = answer
        try:
            # Bounded by what the verb does: start timeouts and shutdown times.
            await answer.given.wait()
        finally:
            self._waiting.pop(number, None)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def kill(self) -> None:
        """End everything immediately, without waiting for shutdown times."""
        self.incarnations.kill_all()
        self.post(m.Exited("", 0, KILLED))

    # --- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide and carry out, until the tree has ended."""
        self._mailbox.post(m.Boot())
        try:
            with self.watchdog.watching():
                while self.ended is None:
                    self._decide(await self._mailbox.next())
        finally:
            for answer in self._waiting.values():
                answer.give(None, SupervisorStoppedError(""))
            for timer in self._timers.values():
                timer.cancel()
            self.settled.set()
            self.over.set()

    def _decide(self, event: m.Event) -> None:
        for effect in self.core.handle(event, time.monotonic()):
            self._handlers[type(effect)](effect)
            if self._observer is not None:
                self._observer.observe(effect)

    # --- effects on the tree ----------------------------------------------------------------------------

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
        self.incarnations.changed(effect)
        self._reporter.changed(effect)

    def _tree_up(self, _: m.TreeUp) -> None:
        self.settled.set()

    def _tree_ended(self, effect: m.TreeEnded) -> None:
        self.ended = effect
