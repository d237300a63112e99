"""The decisions of a supervision tree, pure: ``handle(event, now) -> effects``.

No clock, no I/O, no asyncio, no randomness but the ``random.Random`` it is given. The same core serves
the runtime, tests in virtual time, the comparison with OTP, and replay from a journal.

    >>> from random import Random
    >>> from rayvisor.specs import ChildSpec, SupervisorSpec
    >>> class Nothing:
    ...     kind = "nothing"
    >>> spec = SupervisorSpec(intensity=1, period=5.0, children=[ChildSpec(id="a", start=Nothing())])
    >>> core = Core(spec, Random(0))
    >>> [type(effect).__name__ for effect in core.handle(m.Boot(), 0.0)]
    ['SupervisorChanged', 'Changed', 'Start']
    >>> [type(effect).__name__ for effect in core.handle(m.Started("a", 1), 0.1)]
    ['Changed', 'SupervisorChanged', 'TreeUp']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor._core import messages as m
from rayvisor._core.calls import Calls
from rayvisor._core.exits import SHUTDOWN, Exit
from rayvisor.errors import SupervisorStoppedError

if TYPE_CHECKING:
    from rayvisor._core.tree import Child

__all__ = ["Core"]


class Core(Calls):
    """A supervision tree's decisions.

    Parameters
    ----------
    spec
        The root supervisor.
    random
        Where jitter comes from.
    """

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        """Decide about one event.

        Parameters
        ----------
        event
            What happened. Late, repeated and unknown events change nothing.
        now
            Seconds on a clock that never goes back.

        Returns
        -------
        list[Effect]
            What to do, in this order.
        """
        self.now = max(now, self.now)
        self._out = out = []
        if self.ended:
            self._after_the_end(event)
        else:
            _HANDLERS[type(event)](self, event)  # type: ignore[arg-type]
        return out

    def status(self, path: str) -> Child | None:
        """The child at ``path``, to read."""
        return self.children.get(path)

    def _after_the_end(self, event: m.Event) -> None:
        if isinstance(event, m.Call):
            self._out.append(m.Reply(event.call, None, SupervisorStoppedError(event.target)))
        elif isinstance(event, m.Started):
            self._out.append(m.Kill(event.child, event.incarnation))

    def _on_boot(self, _: m.Boot) -> None:
        self._boot(self.root)

    def _on_halt(self, _: m.Halt) -> None:
        self._halt(self.root, SHUTDOWN)

    def _on_started(self, event: m.Started) -> None:
        child = self._live(event.child, event.incarnation)
        if child is None or not child.begun:
            # A late start: whatever it started must not stay.
            self._out.append(m.Kill(event.child, event.incarnation))
        elif child.configuration.leaf == "STARTING":
            self._came_up(child)

    def _on_ignored(self, event: m.Ignored) -> None:
        child = self._live(event.child, event.incarnation)
        if child is None or not child.begun:
            return
        if child.configuration.leaf == "STARTING":
            self._ignored(child)
        elif child.configuration.leaf == "STOPPING":
            self._landed(child)

    def _on_start_failed(self, event: m.StartFailed) -> None:
        self._on_end(event.child, event.incarnation, event.exit, gone=event.gone)

    def _on_exited(self, event: m.Exited) -> None:
        self._on_end(event.child, event.incarnation, event.exit, gone=event.gone)

    def _on_end(self, path: str, incarnation: int, exit: Exit, *, gone: bool) -> None:  # noqa: A002
        child = self._live(path, incarnation)
        if child is None or not child.begun:
            return
        leaf = child.configuration.leaf
        if leaf == "STOPPING":
            # Asked to end, or seen to end before: one end per incarnation, repeats change nothing.
            if gone:
                self._landed(child)
        elif leaf == "STARTING":
            self._start_failed(child, exit, gone=gone)
        else:
            self._died(child, exit, gone=gone)

    def _on_gone(self, event: m.Gone) -> None:
        child = self._live(event.child, event.incarnation)
        if child is not None and child.begun and child.configuration.leaf == "STOPPING":
            self._landed(child)

    def _on_timer(self, event: m.TimerFired) -> None:
        child = self._timers.pop(event.timer, None)
        if child is not None:
            child.timer = 0
            self._timer_due(child)

    def _on_progressed(self, event: m.Progressed) -> None:
        child = self._live(event.child, event.incarnation)
        if child is not None:
            child.progressed = True

    def _on_reported(self, event: m.Reported) -> None:
        child = self._live(event.child, event.incarnation)
        if child is not None and child.begun:
            self._move(child, event.event, "" if event.fault is None else str(event.fault))


_HANDLERS = {
    m.Boot: Core._on_boot,
    m.Halt: Core._on_halt,
    m.Started: Core._on_started,
    m.Ignored: Core._on_ignored,
    m.StartFailed: Core._on_start_failed,
    m.Exited: Core._on_exited,
    m.Gone: Core._on_gone,
    m.TimerFired: Core._on_timer,
    m.Progressed: Core._on_progressed,
    m.Reported: Core._on_reported,
    m.Call: Core._called,
}
