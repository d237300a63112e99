"""Lifecycle callbacks: hooks that run when a child enters or leaves a state. The only user of transitions.

The core decides with a chart's table; the runtime then fires the same event here, and hooks run. One machine
serves every child that follows the chart: a child is any object with a ``state`` slot, at no further cost.

    >>> from statecharts.lifecycles import ACTOR
    >>> class Child:
    ...     __slots__ = ("state",)
    >>> machine = LifecycleMachine(ACTOR)
    >>> machine.on_enter("ALIVE", lambda change: print("up:", change.after))
    >>> child = Child()
    >>> child.state = machine.table.initial
    >>> machine.fire(child, "started")
    up: ALIVE.SERVING
    <Configuration ALIVE.SERVING>
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import transitions

from rayvisor._core.protocol.causes import shortened, traceback_text
from rayvisor._core.protocol.user_code import concerns_program
from rayvisor._log import get_logger
from rayvisor._public import shown_as
from statecharts import Chart, ChartError, Configuration, Table, compile_chart

__all__ = ["Change", "Hook", "HookFailure", "LifecycleMachine", "Stateful"]

log = get_logger(__name__)
# It logs four lines for each transition at INFO; the runtime logs each transition once.
logging.getLogger("transitions").setLevel(logging.WARNING)


class Stateful(Protocol):
    """Any object with a state in a chart. It begins in ``table.initial``."""

    state: Configuration


@dataclass(frozen=True, slots=True)
class Change:
    """One transition of one child, as its hooks get it."""

    model: Any
    """The child: the object that was passed to `fire`."""
    event: str
    before: Configuration
    after: Configuration


@dataclass(frozen=True, slots=True)
class HookFailure:
    """A hook that raised. The transition was completed all the same."""

    change: Change
    moment: Literal["enter", "exit"]
    place: str
    """The state or leaf that the hook belongs to."""
    hook: str
    """The hook's qualified name."""
    error: BaseException


Hook = Callable[[Change], object]
"""A user's callback. In an exit hook the child is still in its old state, in an enter hook in the new one."""


class LifecycleMachine:
    """One ``transitions.Machine`` for everything that follows a chart.

    Hooks run when the leaf changes: those of the leaf that is left, then of the state around it if
    that is left, too, then those of the state and of the leaf that are entered. A transition that only
    changes flags, or returns to the same leaf, runs none.

    Parameters
    ----------
    chart
        The chart to follow.
    report
        Called with each `HookFailure`; it is logged in any case.
    """

    def __init__(self, chart: Chart, report: Callable[[HookFailure], object] | None = None) -> None:
        self.table: Final[Table] = compile_chart(chart)
        """The chart's table, which `fire` follows event by event."""
        self._report = report
        self._hooks: dict[tuple[str, str], list[Hook]] = {}
        self._names = {leaf.name for leaf in chart.leaves} | {state.name for state in chart.states}
        self._firing: list[object] = []
        self._machine = self._build()

    def _build(self) -> transitions.Machine:
        machine = transitions.Machine(
            model=None,
            states=[
                transitions.State(_key(here), on_enter=[self._entered], on_exit=[self._exited])
                for here in self.table.configurations
            ],
            initial=None,  # a child sets its own slot
            auto_transitions=False,
            send_event=True,
            name=self.table.chart.name,
        )
        for (here, event), there in self.table.rows.items():
            # No target makes it an internal transition: nothing is left and nothing entered.
            machine.add_transition(event, _key(here), None if here is there else _key(there))
        return machine

    def on_enter(self, place: str, hook: Hook) -> None:
        """Call ``hook`` each time a child enters a state or a leaf."""
        self._add("enter", place, hook)

    def on_exit(self, place: str, hook: Hook) -> None:
        """Call ``hook`` each time a child leaves a state or a leaf."""
        self._add("exit", place, hook)

    def fire(self, model: Stateful, event: str) -> Configuration | None:
        """Carry an event out on a child and run its hooks.

        Returns
        -------
        Configuration | None
            The child's new configuration; None if the event has no meaning in its present one, as
            `Table.step` returns it.

        Raises
        ------
        ChartError
            If the chart has no such event.
        RuntimeError
            If a hook fires an event on the child in whose transition it runs.
        """
        known = self._machine.events.get(event)
        if known is None:
            name, events = self.table.chart.name, ", ".join(self.table.events)
            raise ChartError(name, f"event {event!r}", "is not in the chart", f"its events are {events}")
        # Checked before: the machine would raise an exception, or log a warning.
        if _key(model.state) not in known.transitions:
            return None
        if any(model is busy for busy in self._firing):
            raise RuntimeError(
                f"event {event!r} was fired by a hook of {model!r} within another transition of it; "
                "send it through the supervisor instead"
            )
        self._firing.append(model)
        try:
            known.trigger(model)
        finally:
            self._firing.pop()
        return model.state

    def _add(self, moment: Literal["enter", "exit"], place: str, hook: Hook) -> None:
        if place not in self._names:
            name, known = self.table.chart.name, ", ".join(sorted(self._names))
            raise ChartError(
                name, f"hook for {place!r}", "there is no such state or leaf", f"use one of {known}"
            )
        if inspect.iscoroutinefunction(hook):
            # Nothing would await it: a transition takes no time, and cannot be interrupted.
            raise TypeError(
                f"hook {_name(hook)!r} for {place!r} is a coroutine function; hooks run within a transition: "
                "make it a plain function"
            )
        self._hooks.setdefault((moment, place), []).append(hook)

    def _exited(self, data: transitions.EventData) -> None:
        change = _change(data)
        before, after = change.before, change.after
        if before.leaf != after.leaf:
            self._run("exit", before.leaf, change)
            if before.state not in (after.state, before.leaf):
                self._run("exit", before.state, change)

    def _entered(self, data: transitions.EventData) -> None:
        change = _change(data)
        before, after = change.before, change.after
        if before.leaf != after.leaf:
            if after.state not in (before.state, after.leaf):
                self._run("enter", after.state, change)
            self._run("enter", after.leaf, change)

    def _run(self, moment: Literal["enter", "exit"], place: str, change: Change) -> None:
        for hook in tuple(self._hooks.get((moment, place), ())):
            try:
                hook(change)
            except BaseException as error:
                if concerns_program(error):
                    raise
                self._failed(HookFailure(change, moment, place, _name(hook), error))

    def _failed(self, failure: HookFailure) -> None:
        where: dict[str, Any] = {
            "chart": self.table.chart.name,
            "hook": failure.hook,
            "moment": failure.moment,
            "place": failure.place,
            "trigger": failure.change.event,
            "model": repr(failure.change.model),
        }
        log.error("machine.hook.failed", **where, traceback=traceback_text(failure.error))
        if self._report is None:
            return
        try:
            self._report(failure)
        except Exception:  # as above: a report that fails must not fail the transition either
            log.exception("machine.report.failed", **where)


def _key(configuration: Configuration) -> Any:
    """Pass a configuration where transitions is typed for a name.

    A state of the machine is the configuration object itself: the slot of a child then holds the object that
    the core works with, and nothing has to be looked up between the two.
    """
    return configuration


def _change(data: transitions.EventData) -> Change:
    taken: Any = data.transition
    return Change(data.model, data.event.name, taken.source, taken.dest)


def _name(hook: Hook) -> str:
    try:
        return shortened(getattr(hook, "__qualname__", None) or repr(hook))
    except BaseException as error:
        if concerns_program(error):
            raise
        return type(hook).__qualname__


shown_as("rayvisor", Change)
