"""The core's lower half: moving one child along its chart, starting it, stopping it, timers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count, islice
from typing import TYPE_CHECKING

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import After, Child, Phase, Supervisor
from rayvisor.errors import ChildStartError
from rayvisor.faults import KILLED, SHUTDOWN, Exit
from rayvisor.specs import SupervisorSpec
from statecharts import compile_chart
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from random import Random

    from rayvisor.specs import ChildSpec

__all__ = ["Motions"]

_ENGINES = frozenset({"engine", "server"})
_TABLES = {name: compile_chart(CHARTS[name]) for name in ("actor", "engine")}

_MOST_RETIRED = 100_000
"""How many numbers of forgotten children are kept one by one."""


class Motions(ABC):
    """What happens to one child at a time; what it means for its siblings is decided above.

    Parameters
    ----------
    spec
        The root supervisor.
    random
        Where jitter comes from.
    """

    def __init__(self, spec: SupervisorSpec, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.root = Supervisor("", spec, None)
        self.children: dict[str, Child] = {}
        self.supervisors: dict[str, Supervisor] = {"": self.root}
        self.ended = False
        self.asking = ""
        """The strategy that is being asked: it is a user's code, and may never answer."""
        self._out: list[m.Effect] = []
        self._timers: dict[int, Child] = {}
        self._timer_ids = count(1)
        # Paths that were paused and not resumed: a pause outlives the supervisor above, and its children.
        self._paused: set[str] = set()
        # Incarnation numbers of children whose spec is gone: a number is never used twice for a path.
        self._retired_epochs: dict[str, int] = {}
        self._floor = 0

    # --- what is decided above ----------------------------------------------------------------

    @abstractmethod
    def _boot(self, supervisor: Supervisor) -> None: ...

    @abstractmethod
    def _boot_step(self, child: Child) -> None: ...

    @abstractmethod
    def _came_up(self, child: Child) -> None: ...

    @abstractmethod
    def _start_failed(self, child: Child, exit: Exit, *, gone: bool) -> None: ...  # noqa: A002 - OTP's word

    @abstractmethod
    def _died(self, child: Child, exit: Exit, *, gone: bool) -> None: ...  # noqa: A002 - OTP's word

    @abstractmethod
    def _judge(self, child: Child) -> None: ...

    @abstractmethod
    def _child_gone(self, child: Child) -> None: ...

    @abstractmethod
    def _retry(self, child: Child) -> None: ...

    @abstractmethod
    def _retry_due(self, child: Child) -> None: ...

    @abstractmethod
    def _called(self, call: m.Call) -> None: ...

    @abstractmethod
    def _halt(self, supervisor: Supervisor, exit: Exit) -> None: ...  # noqa: A002 - OTP's word

    # --- children ---------------------------------------------------------------------------

    def _adopt(self, parent: Supervisor, spec: ChildSpec) -> Child:
        """Add a child to the end of its supervisor's list."""
        path = parent.path_of(spec.id)
        table = _TABLES["engine" if getattr(spec.start, "kind", "") in _ENGINES else "actor"]
        paused = path in self._paused or (path not in self._retired_epochs and parent.path in self._paused)
        child = Child(path, spec, parent, table, self._retired_epochs.pop(path, self._floor))
        if paused:
            self._paused.add(path)
            child.configuration = table.step(child.configuration, "pause") or child.configuration
        if spec.standby:
            child.configuration = table.step(child.configuration, "standby") or child.configuration
            parent.spares = True
        parent.children[spec.id] = child
        self.children[path] = child
        return child

    def _forget(self, child: Child) -> None:
        """Drop a child with its spec."""
        if child.removed:
            return
        child.removed = True
        child.parent.broken.pop(child, None)
        self._drop_timer(child)
        child.parent.children.pop(child.spec.id, None)
        if self._paused:
            below = f"{child.path}/"
            self._paused -= {path for path in self._paused if path == child.path or path.startswith(below)}
        self._retire(child)
        self._out.append(m.Removed(child.path))

    def _forget_if_disposable(self, child: Child) -> None:
        if child.disposable:
            self._forget(child)

    def _dissolve(self, supervisor: Supervisor) -> None:
        """Drop an ended supervisor's children from the index; its next incarnation makes its own."""
        for child in supervisor.children.values():
            self._retire(child)
        self.supervisors.pop(supervisor.path, None)

    def _retire(self, child: Child) -> None:
        self.children.pop(child.path, None)
        self._retired_epochs[child.path] = child.incarnation
        if child.subtree is not None:
            self._dissolve(child.subtree)
        if len(self._retired_epochs) > _MOST_RETIRED:
            # Memory stays bounded: of the oldest half only the highest number is kept, for all.
            for path in list(islice(self._retired_epochs, _MOST_RETIRED // 2)):
                self._floor = max(self._floor, self._retired_epochs.pop(path))

    def _live(self, path: str, incarnation: int) -> Child | None:
        """Return the child if this is its current incarnation: the fence every report passes."""
        child = self.children.get(path)
        return child if child is not None and child.incarnation == incarnation and child.begun else None

    # --- charts -----------------------------------------------------------------------------

    def _move(self, child: Child, event: str, why: str = "") -> bool:
        before = child.configuration
        after = child.table.step(before, event)
        if after is None:
            return False
        child.configuration = after
        if event == "stale":
            child.stales += 1
        self._out.append(
            m.Changed(child.path, child.incarnation, event, before, after, why, child.table.chart.name)
        )
        return True

    @staticmethod
    def _up(child: Child) -> bool:
        state = child.configuration.state
        return state == "ALIVE" or state == "PAUSED"  # noqa: PLR1714 - twice as fast as a set, and hot

    # --- starting and stopping --------------------------------------------------------------

    def _start(self, child: Child) -> None:
        child.incarnation += 1
        child.begun = True
        child.restarting = False
        child.progressed = False
        child.stop_requested = False
        child.up_since = None
        child.after = After.REST
        if not self._move(child, "start"):
            # A fresh child is in STARTING from the beginning; what watches is told all the same.
            here = child.configuration
            self._out.append(
                m.Changed(child.path, child.incarnation, "start", here, here, "", child.table.chart.name)
            )
        if child.spec.gate is not None:
            self._move(child, "stale", "it has a gate")
        if child.subtree is not None:
            self._dissolve(child.subtree)
            child.subtree = None
        if isinstance(child.spec.start, SupervisorSpec):
            self._grow(child, child.spec.start)
        else:
            self._out.append(m.Start(child.path, child.incarnation, child.spec, child.exit))

    def _grow(self, child: Child, spec: SupervisorSpec) -> None:
        """Bring up the subtree of a child that is a supervisor."""
        child.subtree = subtree = Supervisor(child.path, spec, child)
        self.supervisors[child.path] = subtree
        self._boot(subtree)

    def _stop(self, child: Child, after: After, reason: str = "shutdown") -> None:
        """End what there is of a child; `_child_gone` follows once it is proven gone."""
        child.after = after
        self._drop_timer(child)
        child.restarting = False
        child.unjudged = False
        if not child.begun:
            self._child_gone(child)
            return
        if child.configuration.leaf == "STOPPING":
            return  # its end is under way already, only its meaning changes
        child.stop_requested = True
        self._move(child, "stop", reason)
        ending = child.spec.ending
        subtree = child.subtree
        if subtree is None:
            self._out.append(m.Stop(child.path, child.incarnation, ending, reason))
            return
        if child.parent.killed:
            # An orphan hears that its supervisor was killed, and ends in order, in its own time (OTP T5).
            self._halt(subtree, SHUTDOWN)
            return
        self._halt(subtree, KILLED if ending.seconds is None else SHUTDOWN)
        if subtree.phase is Phase.STOPPING and ending.seconds is not None and not ending.endless:
            self._set_timer(child, ending.seconds)  # then it is killed, and its children end side by side

    # --- timers and answers -----------------------------------------------------------------

    def _set_timer(self, child: Child, delay: float) -> None:
        self._drop_timer(child)
        child.timer = next(self._timer_ids)
        self._timers[child.timer] = child
        self._out.append(m.SetTimer(child.timer, delay, child.path))

    def _drop_timer(self, child: Child) -> None:
        if child.timer:
            self._timers.pop(child.timer, None)
            self._out.append(m.CancelTimer(child.timer))
            child.timer = 0

    def _refuse_starter(self, child: Child, exit: Exit | None) -> None:  # noqa: A002 - OTP's word
        """Tell who asked for a start that nothing came of it."""
        start_call, child.start_call = child.start_call, None
        if start_call is not None:
            fault = None if exit is None else exit.fault
            self._out.append(m.Reply(start_call.call, None, ChildStartError(child.path, fault, exit)))

    def _answer_waiting(self, child: Child) -> None:
        """Go on with the calls that waited for a child to be down."""
        waiting, child.waiting = child.waiting, ()
        for call in waiting:
            if call.verb is m.Verb.TERMINATE_CHILD:
                self._out.append(m.Reply(call.call, None))
            else:
                self._called(call)
