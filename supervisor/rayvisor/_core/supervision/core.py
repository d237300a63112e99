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

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.calls import Calls
from rayvisor._core.supervision.nodes import Phase
from rayvisor.errors import SupervisorStoppedError
from rayvisor.faults import KILLED, Exit, ExitKind
from rayvisor.strategies import InPlace

if TYPE_CHECKING:
    from rayvisor._core.supervision.nodes import Child

__all__ = ["Core"]

_OWN = frozenset(
    {"start", "started", "fault", "exit", "stop", "stopped", "backoff", "completed", "failed", "exhausted"}
)
"""Events of the charts that only the core itself may cause: a report of one changes nothing."""


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
        out: list[m.Effect] = []
        self._out = out
        if self.ended:
            self._after_the_end(event)
        else:
            self._HANDLERS[type(event)](self, event)
        return out

    def status(self, path: str) -> Child | None:
        """Find the child at ``path``, to read."""
        return self.children.get(path)

    def _after_the_end(self, event: m.Event) -> None:
        if isinstance(event, m.Call):
            self._out.append(m.Reply(event.call, None, SupervisorStoppedError(event.target)))
        elif isinstance(event, m.Started):
            self._out.append(m.Kill(event.child, event.incarnation))

    # --- the tree ---------------------------------------------------------------------------

    def _on_boot(self, _: m.Boot) -> None:
        if self.root.phase is Phase.DOWN:
            self._boot(self.root)

    def _on_halt(self, event: m.Halt) -> None:
        word = "" if event.reason == "shutdown" else event.reason
        if self.root.phase is Phase.DOWN:
            self._over(self.root)  # before it came up
        else:
            self._halt(self.root, Exit(ExitKind.SHUTDOWN, word))

    # --- starts -----------------------------------------------------------------------------

    def _on_started(self, event: m.Started) -> None:
        child = self._live(event.child, event.incarnation)
        if child is None:
            # A late start: whatever it started must not stay.
            self._out.append(m.Kill(event.child, event.incarnation))
        elif child.configuration.leaf == "STARTING":
            self._came_up(child)

    def _on_prepared(self, event: m.Prepared) -> None:
        child = self._live(event.child, event.incarnation)
        if child is None or child.subtree is not None:
            return
        if child.configuration.leaf == "STARTING":
            self._grow(child, event.spec)
        elif child.configuration.leaf == "STOPPING":
            self._child_gone(child)

    def _on_ignored(self, event: m.Ignored) -> None:
        child = self._live(event.child, event.incarnation)
        if child is None:
            return
        if child.configuration.leaf == "STARTING":
            self._ignored(child)
        elif child.configuration.leaf == "STOPPING":
            self._child_gone(child)

    def _on_start_failed(self, event: m.StartFailed) -> None:
        self._on_end(event.child, event.incarnation, event.exit, gone=event.gone)

    # --- ends -------------------------------------------------------------------------------

    def _on_exited(self, event: m.Exited) -> None:
        if event.child or self.root.phase is Phase.DOWN:
            self._on_end(event.child, event.incarnation, event.exit, gone=event.gone)
        else:
            self._halt(self.root, event.exit)

    def _on_end(self, path: str, incarnation: int, exit: Exit, *, gone: bool) -> None:  # noqa: A002 - OTP's word
        child = self._live(path, incarnation)
        if child is None:
            return
        if child.subtree is not None:
            self._halt(child.subtree, exit)  # a supervisor has ended when its children have
            return
        leaf = child.configuration.leaf
        if leaf == "STOPPING":
            # Asked to end, or seen to end before: one end per incarnation, repeats change nothing.
            if gone:
                if child.stop_requested:
                    child.exit = exit
                self._child_gone(child)
        elif leaf == "STARTING":
            self._start_failed(child, exit, gone=gone)
        else:
            self._died(child, exit, gone=gone)

    def _on_gone(self, event: m.Gone) -> None:
        child = self._live(event.child, event.incarnation)
        if child is not None and child.subtree is None and child.configuration.leaf == "STOPPING":
            self._child_gone(child)

    # --- timers, progress, reports ------------------------------------------------------------

    def _on_timer(self, event: m.TimerFired) -> None:
        child = self._timers.pop(event.timer, None)
        if child is None:
            return
        child.timer = 0
        if child.subtree is not None and child.configuration.leaf == "STOPPING":
            self._halt(child.subtree, KILLED)  # it did not end in time
        else:
            self._retry_due(child)

    def _on_progressed(self, event: m.Progressed) -> None:
        child = self._live(event.child, event.incarnation)
        if child is not None:
            child.progressed = True

    def _on_reported(self, event: m.Reported) -> None:
        child = self._live(event.child, event.incarnation)
        if child is None or event.event in _OWN:
            return
        if event.stales is not None and event.stales != child.stales:
            return  # it was brought up to what is out of date again
        if event.event == "unhealthy":
            self._unhealthy(child, event.fault)
        else:
            self._move(child, event.event, "" if event.fault is None else str(event.fault))
            self._group_step(child.parent, child)

    def _on_acted(self, event: m.Acted) -> None:
        child = self._live(event.child, event.incarnation)
        if child is not None and self._recovery_answered(child, ok=event.ok, fault=event.fault):
            return
        group = None if child is None else child.parent.group
        if child is None or group is None or group.failed is not child or not isinstance(group.step, InPlace):
            return
        if event.ok:
            group.acted = True
        else:
            if event.fault is not None:
                child.exit = Exit(ExitKind.FAULT, fault=event.fault)
            group.failure = child
        self._group_step(child.parent, child)

    _HANDLERS: ClassVar[dict[type, Callable[[Core, Any], None]]] = {
        m.Boot: _on_boot,
        m.Halt: _on_halt,
        m.Started: _on_started,
        m.Prepared: _on_prepared,
        m.Ignored: _on_ignored,
        m.StartFailed: _on_start_failed,
        m.Exited: _on_exited,
        m.Gone: _on_gone,
        m.TimerFired: _on_timer,
        m.Progressed: _on_progressed,
        m.Reported: _on_reported,
        m.Acted: _on_acted,
        m.Call: Calls._called,  # noqa: SLF001 - its own, one class up
    }
