"""A tree in virtual time: real decisions, simulated processes, and a clock that a test advances.

>>> from rayvisor.specs import ChildSpec, Strategy, SupervisorSpec
>>> spec = SupervisorSpec(
...     strategy=Strategy.ONE_FOR_ALL,
...     children=[ChildSpec(id="a", start=NOTHING), ChildSpec(id="b", start=NOTHING)],
... )
>>> tree = VirtualTree(spec)
>>> tree.take()
['start a 1', 'start b 1', 'tree up']
>>> tree.crash("a")
>>> tree.take()
['stop b 1', 'start a 2', 'start b 2']
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.core import Core
from rayvisor.faults import SHUTDOWN, Cause, Exit, ExitKind, Fault, FaultClass

if TYPE_CHECKING:
    from rayvisor.specs import SupervisorSpec

__all__ = ["BOOM", "HANGS", "IGNORES", "NOTHING", "UP", "Outcome", "VirtualTree", "fails", "fault_of"]


class _Nothing(NamedTuple):
    """A start spec that starts nothing."""

    kind: str = "nothing"


NOTHING = _Nothing()
"""The start spec for trees of which only the decisions matter."""

BOOM = Exit(ExitKind.FAULT, "boom")
"""An abnormal exit."""


class Outcome(NamedTuple):
    """The outcome of a start."""

    kind: str
    """``up``, ``fails``, ``ignores`` or ``hangs``."""
    after: float = 0.0
    exit: Exit = BOOM
    gone: bool = True


UP = Outcome("up")
IGNORES = Outcome("ignores")
HANGS = Outcome("hangs")
"""No outcome until [`VirtualTree.feed`][rayvisor.testing.virtual.VirtualTree.feed] gives one."""


def fails(exit: Exit = BOOM, *, after: float = 0.0, gone: bool = True) -> Outcome:
    """Make the outcome of a start that fails."""
    return Outcome("fails", after, exit, gone)


def fault_of(fault_class: FaultClass, message: str = "boom", child: str = "a") -> Exit:
    """Make an abnormal exit with a fault of a class."""
    fault = Fault(
        child=child,
        incarnation=1,
        at=0.0,
        source="test",
        fault_class=fault_class,
        causes=(Cause("TestError", message),),
    )
    return Exit(ExitKind.FAULT, fault=fault)


class VirtualTree:
    """A supervision tree with simulated processes and a clock that only the test advances.

    Parameters
    ----------
    spec
        The root supervisor.
    seed
        Seed of the jitter.
    outcomes
        By path, the outcomes of its first, second, ... start; starts beyond the list succeed immediately.
    boot
        Whether to start the tree now.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        seed: int = 0,
        outcomes: dict[str, list[Outcome]] | None = None,
        boot: bool = True,
    ) -> None:
        self.core = Core(spec, Random(seed))
        self.now = 0.0
        self.effects: list[m.Effect] = []
        """All effects so far."""
        self.live: dict[str, int] = {}
        """Incarnations that were started and are not confirmed gone."""
        self.outcomes = {path: list(script) for path, script in (outcomes or {}).items()}
        self.stop_seconds: dict[str, float | None] = {}
        """By path, the seconds that a stop takes; None if it never completes. By default it is immediate."""
        self.replies: dict[int, m.Reply] = {}
        self.ended: m.TreeEnded | None = None
        self._actions: list[str] = []
        self._answers: deque[m.Event] = deque()
        self._later: list[tuple[float, int, int, m.Event]] = []
        self._cancelled: set[int] = set()
        self._order = count()
        self._calls = count(1)
        if boot:
            self.feed(m.Boot())

    # --- actions of a test ----------------------------------------------------------------------

    def feed(self, event: m.Event) -> list[m.Effect]:
        """Give the core an event and all immediate answers to its effects; return the effects."""
        before = len(self.effects)
        self._answers.append(event)
        while self._answers:
            for effect in self.core.handle(self._answers.popleft(), self.now):
                self._carry_out(effect)
            if not self._answers and self._later and self._later[0][0] <= self.now:
                self._fire()
        return self.effects[before:]

    def crash(self, path: str, exit: Exit = BOOM, *, gone: bool = True) -> None:
        """Make the living incarnation at ``path`` exit by itself."""
        incarnation = self.live[path]
        if gone:
            del self.live[path]
        self.feed(m.Exited(path, incarnation, exit, gone))

    def crash_many(self, *paths: str) -> None:
        """Make several incarnations exit before the core is notified of any of them."""
        events = [m.Exited(path, self.live.pop(path), BOOM) for path in paths]
        for event in events:
            self.feed(event)

    def acted(self, path: str, *, ok: bool = True, exit: Exit = BOOM) -> None:
        """Report the result of an in-place action of the incarnation at ``path``."""
        self.feed(m.Acted(path, self.live[path], ok, None if ok else exit.fault))

    def report(self, path: str, event: str) -> None:
        """Report a chart event of the incarnation at ``path``, for example ``suspect`` or ``stale``."""
        self.feed(m.Reported(path, self.live[path], event))

    def prove(self, path: str) -> None:
        """Confirm that nothing is left of the incarnation that exited at ``path``."""
        self.feed(m.Gone(path, self.live.pop(path)))

    def call(self, verb: m.Verb, target: str = "", argument: Any = None) -> m.Reply | None:
        """Call a supervisor; return the reply, or None if there is none yet."""
        number = next(self._calls)
        self.feed(m.Call(number, verb, target, argument))
        return self.replies.get(number)

    def halt(self) -> None:
        """Ask the tree to stop."""
        self.feed(m.Halt())

    def advance(self, seconds: float) -> None:
        """Advance the clock and run everything that is due meanwhile."""
        until = self.now + seconds
        while self._later and self._later[0][0] <= until:
            self.now = max(self.now, self._later[0][0])
            self._fire()
            if self._answers:
                self.feed(self._answers.popleft())
        self.now = until

    # --- observations of a test -----------------------------------------------------------------

    def take(self) -> list[str]:
        """Return the actions since the last call as text: ``start a 2``, ``stop b 1``, ..."""
        actions, self._actions = self._actions, []
        return actions

    def leaf(self, path: str) -> str:
        """Return the leaf that a child is in; empty if there is no such child."""
        child = self.core.status(path)
        return "" if child is None else child.configuration.leaf

    def next_timer(self) -> float | None:
        """Return the seconds until the next timer is due, or None."""
        due = [at for at, _, timer, _ in self._later if timer not in self._cancelled]
        return min(due) - self.now if due else None

    def of(self, kind: type[Any]) -> list[Any]:
        """Return all effects of a kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    # --- execution ------------------------------------------------------------------------------

    def _fire(self) -> None:
        _, _, timer, event = heappop(self._later)
        if timer not in self._cancelled:
            self._settle(event)
            self._answers.append(event)

    def _settle(self, event: m.Event) -> None:
        """Update the living incarnations after an answer."""
        if isinstance(event, m.Ignored) or (isinstance(event, (m.Exited, m.StartFailed)) and event.gone):
            self.live.pop(event.child, None)

    def _answer(self, event: m.Event, after: float, timer: int = 0) -> None:
        heappush(self._later, (self.now + after, next(self._order), timer, event))

    def _carry_out(self, effect: m.Effect) -> None:
        self.effects.append(effect)
        handler = self._HANDLERS.get(type(effect))
        if handler is not None:
            handler(self, effect)

    def _on_start(self, effect: m.Start) -> None:
        self._actions.append(f"start {effect.child} {effect.incarnation}")
        self.live[effect.child] = effect.incarnation
        script = self.outcomes.get(effect.child)
        outcome = script.pop(0) if script else UP
        event = self._answer_to(effect, outcome)
        if event is not None:
            self._answer(event, outcome.after)

    @staticmethod
    def _answer_to(effect: m.Start, outcome: Outcome) -> m.Event | None:
        match outcome.kind:
            case "up":
                return m.Started(effect.child, effect.incarnation)
            case "ignores":
                return m.Ignored(effect.child, effect.incarnation)
            case "fails":
                return m.StartFailed(effect.child, effect.incarnation, outcome.exit, outcome.gone)
            case _:
                return None

    def _on_stop(self, effect: m.Stop) -> None:
        self._actions.append(f"stop {effect.child} {effect.incarnation}")
        seconds = self.stop_seconds.get(effect.child, 0.0)
        if seconds is not None:
            self._answer(m.Exited(effect.child, effect.incarnation, SHUTDOWN), seconds)

    def _on_clean(self, effect: m.Clean) -> None:
        self._actions.append(f"clean {effect.child} {effect.incarnation}")

    def _on_act(self, effect: m.Act) -> None:
        self._actions.append(f"act {effect.child} {effect.action}")

    def _on_strategy_failed(self, effect: m.StrategyFailed) -> None:
        self._actions.append(f"strategy failed: {effect.error}")

    def _on_kill(self, effect: m.Kill) -> None:
        self._actions.append(f"kill {effect.child} {effect.incarnation}")

    def _on_set_timer(self, effect: m.SetTimer) -> None:
        self._answer(m.TimerFired(effect.timer), effect.delay, effect.timer)

    def _on_cancel_timer(self, effect: m.CancelTimer) -> None:
        self._cancelled.add(effect.timer)

    def _on_reply(self, effect: m.Reply) -> None:
        if effect.call in self.replies:
            raise AssertionError(f"call {effect.call} was answered twice")
        self.replies[effect.call] = effect

    def _on_tree_up(self, _: m.TreeUp) -> None:
        self._actions.append("tree up")

    def _on_tree_ended(self, effect: m.TreeEnded) -> None:
        self._actions.append("tree ended")
        self.ended = effect

    _HANDLERS: ClassVar[dict[type, Callable[[VirtualTree, Any], None]]] = {
        m.Start: _on_start,
        m.Stop: _on_stop,
        m.Clean: _on_clean,
        m.Act: _on_act,
        m.StrategyFailed: _on_strategy_failed,
        m.Kill: _on_kill,
        m.SetTimer: _on_set_timer,
        m.CancelTimer: _on_cancel_timer,
        m.Reply: _on_reply,
        m.TreeUp: _on_tree_up,
        m.TreeEnded: _on_tree_ended,
    }
